"""Upsampling without a checkerboard, in place of the transposed convolutions of nnU-Net's decoder."""

from typing import Any

import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op
from torch import Tensor, nn

from nnunet_invariance.networks.interpolation import LINEAR


class InterpolatedConv(nn.Module):
    """A convolution with one tap and linear interpolation, in the place of a transposed convolution.

    A transposed convolution whose kernel is its stride has weights of its own for each position within the stride,
    which a network that predicts images draws into them as a checkerboard. Interpolation has the same weights for all.
    Both steps are linear and commute, so the convolution runs at the coarse resolution, where it is cheaper.

    >>> import torch
    >>> InterpolatedConv(nn.ConvTranspose3d(4, 2, (1, 2, 2), (1, 2, 2)))(torch.rand(1, 4, 3, 5, 5)).shape
    torch.Size([1, 2, 3, 10, 10])

    Args:
        replaced: the transposed convolution, for its numbers of channels and its stride.
    """

    def __init__(self, replaced: Any) -> None:
        super().__init__()
        self.stride = tuple(float(step) for step in replaced.stride)
        convolution = convert_dim_to_conv_op(len(self.stride))
        self.conv = convolution(replaced.in_channels, replaced.out_channels, 1, bias=replaced.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) to (B, C', *spatial times stride)."""
        return F.interpolate(self.conv(x), scale_factor=self.stride, mode=LINEAR[x.ndim - 2])


def smooth_upsampling(decoder: Any) -> None:
    """Replace the transposed convolutions of nnU-Net's decoder, in place, by :class:`InterpolatedConv`."""
    decoder.transpconvs = nn.ModuleList(InterpolatedConv(layer) for layer in decoder.transpconvs)
