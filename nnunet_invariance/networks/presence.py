"""Which channels of a patch hold an image, and which only stand for a modality that is missing."""

import torch
from torch import Tensor

TOLERANCE = 1e-5  # resampling may move a constant by its last digits


def present_channels(x: Tensor) -> Tensor:
    """False where a channel is one constant, or one constant inside a box of zeros; (B, C, *spatial) to (B, C) bool.

    A missing modality is a constant image in its slot. It stays constant under every normalisation of nnU-Net, though
    not 0 under that of CT, and nnU-Net pads volumes smaller than the patch with zeros: hence the box. In a volume that
    is there, a patch of nothing but background counts as missing too; it has nothing to say.
    """
    axes = tuple(range(2, x.ndim))
    nonzero = x != 0
    low = torch.where(nonzero, x, torch.inf).amin(axes)
    high = torch.where(nonzero, x, -torch.inf).amax(axes)
    count = nonzero.sum(axes)
    one_value = (high - low) <= TOLERANCE * high.abs()
    return ~((count == 0) | (one_value & (count == _box_size(nonzero))))


def _box_size(inside: Tensor) -> Tensor:
    """Voxels of the smallest box that holds all of ``inside`` (B, C, *spatial): (B, C)."""
    size = torch.ones(inside.shape[:2], dtype=torch.long, device=inside.device)
    for axis in range(2, inside.ndim):
        others = tuple(a for a in range(2, inside.ndim) if a != axis)
        line = inside.any(others[1]).any(others[0]) if len(others) == 2 else inside.any(others[0])
        first, last = line.long().argmax(-1), line.long().flip(-1).argmax(-1)
        size = size * (line.shape[-1] - first - last)
    return size


def over_maps(mask: Tensor, maps: Tensor) -> Tensor:
    """(B, C) with axes of length 1 behind, so that it goes with maps (B, C, ...)."""
    return mask.view(*mask.shape, *[1] * (maps.ndim - mask.ndim))
