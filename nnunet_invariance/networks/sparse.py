"""Sparse encoding of a masked image: what is hidden takes no part in convolutions and norms."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.errors import OptionError

NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)


def visibility(visible: Tensor, size: Sequence[int]) -> Tensor:
    """Visible cells (B, 1, *grid) on a map of ``size``: 1 where visible, in float.

    A place that holds several cells is visible if one of them is.
    """
    size = tuple(size)
    if all(n >= g for n, g in zip(size, visible.shape[2:], strict=True)):
        return F.interpolate(visible.float(), size, mode="nearest")
    pool = {2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}[len(size)]
    return pool(visible.float(), size)


def masked_instance_norm(x: Tensor, mask: Tensor, norm: nn.Module) -> Tensor:
    """``norm`` with the statistics of the places where ``mask`` (B, 1, *spatial) is 1, and 0 elsewhere; shape as x."""
    axes = tuple(range(2, x.ndim))
    wide = at_least_float32(x)
    mask = mask.to(wide.dtype)
    count = mask.sum(axes, keepdim=True).clamp(min=1)
    mean = (wide * mask).sum(axes, keepdim=True) / count
    variance = ((wide - mean).square() * mask).sum(axes, keepdim=True) / count
    y = (wide - mean) * torch.rsqrt(variance + norm.eps)
    if norm.affine:
        shape = (1, -1, *[1] * len(axes))
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return (y * mask).to(x.dtype)


class SparseEncoding:
    """Restricts a convolutional encoder to visible cells (as SparK does, arXiv 2301.03580), by forward hooks.

    Every convolution's output is zero where the image is hidden, so nothing leaks in over several layers, and instance
    norms take their statistics over visible places. Names and number of parameters stay the encoder's, so that its
    moving average is a dense encoder. Outside :meth:`restricted_to` the encoder is itself dense.

    Raises:
        OptionError: the encoder has trained layers other than convolutions and instance norms.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._visible: Tensor | None = None
        for module in encoder.modules():
            if isinstance(module, _ConvNd):
                module.register_forward_hook(self._after_convolution)
            elif isinstance(module, NORMS):
                module.register_forward_hook(self._in_place_of_norm)
            elif next(module.parameters(recurse=False), None) is not None:
                raise OptionError(
                    "encoding=sparse needs an encoder of convolutions and instance norms, but "
                    f"{type(encoder).__name__} holds {type(module).__name__}. Take "
                    "--set encoding=dense, or --set preset=a-paper encoding=dense for the rest of that preset."
                )

    @contextmanager
    def restricted_to(self, visible: Tensor) -> Iterator[None]:
        """Encode what lies in ``visible`` cells (B, 1, *grid), boolean."""
        self._visible = visible
        try:
            yield
        finally:
            self._visible = None

    def _after_convolution(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        if self._visible is None:
            return output
        return output * visibility(self._visible, output.shape[2:]).to(output.dtype)

    def _in_place_of_norm(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        if self._visible is None:
            return output
        return masked_instance_norm(arguments[0], visibility(self._visible, output.shape[2:]), module)


class MaskTokens(nn.Module):
    """One learned vector an encoder stage, put where the stage saw nothing.

    Args:
        channels: of each stage, finest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.tokens = nn.ParameterList(nn.init.trunc_normal_(torch.empty(c), std=0.02) for c in channels)

    def forward(self, skips: Sequence[Tensor], visible: Tensor) -> list[Tensor]:
        """Feature maps (B, C_s, *spatial_s) and visible cells (B, 1, *grid) to full feature maps."""
        return [
            torch.where(
                visibility(visible, skip.shape[2:]) > 0, skip, token.to(skip.dtype).view(1, -1, *[1] * (skip.ndim - 2))
            )
            for skip, token in zip(skips, self.tokens, strict=True)
        ]
