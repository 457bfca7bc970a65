"""Sparse encoding of a masked image: convolutions and norms ignore hidden voxels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.errors import OptionError

InstanceNorm: TypeAlias = nn.InstanceNorm2d | nn.InstanceNorm3d


def visibility(visible: Tensor, size: Sequence[int]) -> Tensor:
    """Resample visible cells (B, 1, *grid) to a map of ``size``: float, 1 where visible.

    A position of the map that covers several cells is visible if one of them is.

    >>> visibility(torch.tensor([[[[True, False]]]]), (1, 4))
    tensor([[[[1., 1., 0., 0.]]]])
    """
    size = tuple(size)
    if all(n >= g for n, g in zip(size, visible.shape[2:], strict=True)):
        return F.interpolate(visible.float(), size, mode="nearest")
    pool = {2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}[len(size)]
    return pool(visible.float(), size)


def masked_instance_norm(x: Tensor, mask: Tensor, norm: InstanceNorm) -> Tensor:
    """Instance norm over the positions where ``mask`` (B, 1, *spatial) is 1; all other positions become 0."""
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
    """Restricts a convolutional encoder to visible cells by forward hooks (as SparK does, arXiv 2301.03580).

    The output of every convolution is set to zero at hidden positions, so that hidden positions do not receive
    information through the layers, and instance norms compute their statistics over visible positions. The parameters
    keep their names, so that the moving average of the encoder is a dense encoder. Outside of :meth:`restricted_to`,
    the encoder itself is dense.

    >>> encoder = nn.Conv2d(1, 1, 3, padding=1)
    >>> sparse, visible = SparseEncoding(encoder), torch.tensor([[[[True, False]]]])
    >>> with sparse.restricted_to(visible):
    ...     bool(encoder(torch.ones(1, 1, 2, 4))[..., 2:].any())
    False

    Raises:
        OptionError: the encoder has layers with parameters other than convolutions and instance norms.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._visible: Tensor | None = None
        for module in encoder.modules():
            if isinstance(module, _ConvNd):
                module.register_forward_hook(self._after_convolution)
            elif isinstance(module, InstanceNorm):
                module.register_forward_hook(self._in_place_of_norm)
            elif next(module.parameters(recurse=False), None) is not None:
                raise OptionError(
                    "encoding=sparse needs an encoder of convolutions and instance norms, but "
                    f"{type(encoder).__name__} contains {type(module).__name__}. Use --set "
                    "encoding=dense; to keep the rest of the preset: --set preset=paper encoding=dense."
                )

    @contextmanager
    def restricted_to(self, visible: Tensor) -> Iterator[None]:
        """In this context, the encoder sees only ``visible`` cells (B, 1, *grid) bool."""
        self._visible = visible
        try:
            yield
        finally:
            self._visible = None

    def _after_convolution(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        if self._visible is None:
            return output
        return output * visibility(self._visible, output.shape[2:]).to(output.dtype)

    def _in_place_of_norm(self, module: InstanceNorm, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        if self._visible is None:
            return output
        return masked_instance_norm(arguments[0], visibility(self._visible, output.shape[2:]), module)


class MaskTokens(nn.Module):
    """One learned vector per encoder stage, which replaces the features of hidden positions.

    >>> MaskTokens([3])([torch.zeros(1, 3, 2, 2)], torch.ones(1, 1, 2, 2, dtype=torch.bool))[0].any().item()
    False

    Args:
        channels: number of channels of each stage, finest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.tokens = nn.ParameterList(nn.init.trunc_normal_(torch.empty(c), std=0.02) for c in channels)

    def forward(self, skips: Sequence[Tensor], visible: Tensor) -> list[Tensor]:
        """Fill the hidden positions of feature maps (B, C_s, *spatial_s); visible cells (B, 1, *grid) bool."""
        return [
            torch.where(
                visibility(visible, skip.shape[2:]) > 0, skip, token.to(skip.dtype).view(1, -1, *[1] * (skip.ndim - 2))
            )
            for skip, token in zip(skips, self.tokens, strict=True)
        ]
