"""Detect which channels of a patch contain an image, and which are placeholders of a missing modality."""

import torch
from torch import Tensor

TOLERANCE = 1e-5  # resampling may change the last digits of a constant


def present_channels(x: Tensor) -> Tensor:
    """Detect the channels that contain an image; (B, C, *spatial) to (B, C) bool.

    A channel is missing if it is constant, or constant inside a box that is surrounded by zeros. The placeholder of a
    missing modality is a constant image, and every normalisation of nnU-Net keeps it constant (CT normalisation maps 0
    to another value). nnU-Net pads volumes that are smaller than the patch with zeros, which gives the box. A channel
    that shows only background also counts as missing, because it has no information.

    >>> x = torch.stack((torch.rand(4, 4, 4), torch.zeros(4, 4, 4)))[None]
    >>> present_channels(x)
    tensor([[ True, False]])
    """
    nonzero = x != 0
    count = nonzero.sum(tuple(range(2, x.ndim)))
    return ~((count == 0) | (one_value(x) & (count == _box_size(nonzero))))


def one_value(x: Tensor) -> Tensor:
    """Detect the channels with one value beside 0; (B, C, *spatial) to (B, C) bool, False for channels of zeros."""
    axes = tuple(range(2, x.ndim))
    nonzero = x != 0
    low = torch.where(nonzero, x, torch.inf).amin(axes)
    high = torch.where(nonzero, x, -torch.inf).amax(axes)
    return (high - low) <= TOLERANCE * high.abs()


def _box_size(mask: Tensor) -> Tensor:
    """(B, C): number of voxels of the bounding box of a mask (B, C, *spatial)."""
    size = torch.ones(mask.shape[:2], dtype=torch.long, device=mask.device)
    for axis in range(2, mask.ndim):
        others = tuple(a for a in range(2, mask.ndim) if a != axis)
        line = mask.any(others[1]).any(others[0]) if len(others) == 2 else mask.any(others[0])
        first, last = line.long().argmax(-1), line.long().flip(-1).argmax(-1)
        size = size * (line.shape[-1] - first - last)
    return size


def over_maps(mask: Tensor, maps: Tensor) -> Tensor:
    """Append axes of length 1 to a mask (B, C), so that it broadcasts to maps (B, C, ...)."""
    return mask.view(*mask.shape, *[1] * (maps.ndim - mask.ndim))
