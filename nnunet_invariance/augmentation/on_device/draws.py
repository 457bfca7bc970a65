"""Random parameters, sampled on the CPU."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast
from torch import Tensor

#: A distribution of numbers as nnU-Net's transforms hold it: a range, or nnU-Net's distribution of factors.
Scalar: TypeAlias = tuple[float, float] | BGContrast


def sample_scalar(scalar: Scalar, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Sample independent numbers from a distribution.

    A factor is below 1 with probability 1/2 if the range allows it, and uniform on its side of 1.

    >>> sample_scalar((2.0, 3.0), (4,), torch.Generator()).shape
    torch.Size([4])
    """
    if not isinstance(scalar, BGContrast):
        low, high = scalar
        return torch.rand(tuple(shape), generator=generator) * (high - low) + low
    low, high = scalar.contrast_range
    below = (torch.rand(tuple(shape), generator=generator) < 0.5) & (low < 1)
    above = sample_scalar((max(low, 1.0), high), shape, generator)
    return torch.where(below, sample_scalar((low, 1.0), shape, generator), above)


def choose_rows(
    images: int, channels: int, probability: float, channel_probability: float, generator: torch.Generator
) -> Tensor:
    """Choose the rows that a transform changes: (K, 2) int64, the image and the channel of each row.

    Args:
        images: number of images; a transform happens in each with ``probability``.
        channels: number of channels of an image; if it happens, each changes with ``channel_probability``.
    """
    happens = torch.rand((images, 1), generator=generator) < probability
    return (happens & (torch.rand((images, channels), generator=generator) < channel_probability)).nonzero()
