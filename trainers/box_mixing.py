"""Mixtures of labelled and unlabelled patches: a box of one patch is pasted into the other."""

from collections.abc import Sequence

import torch
from torch import Tensor

#: Edge of the box, as a fraction of the patch (arXiv 2305.00673).
EDGE = 2 / 3


def box_mask(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Where a mixture shows the unlabelled patch: inside of a box at a random place, or everywhere else.

    Args:
        shape: (B, C, *spatial). Each of the B patches has its own box, and is the inner one with probability 1/2.
        generator: of all random numbers; on any device.

    Returns:
        (B, 1, *spatial) bool on ``device``.

    >>> mask = box_mask((4, 1, 9, 9), torch.Generator().manual_seed(0), torch.device("cpu"))
    >>> mask.flatten(1).sum(1).tolist()
    [36, 36, 36, 45]
    """
    batch, spatial = shape[0], shape[2:]
    drawn = torch.rand(batch, 1 + len(spatial), generator=generator, device=generator.device).to(device)
    mask = torch.ones(batch, 1, *spatial, dtype=torch.bool, device=device)
    for axis, length in enumerate(spatial):
        size = max(1, round(EDGE * length))
        along = (1,) * axis + (length,) + (1,) * (len(spatial) - axis - 1)
        start = (drawn[:, 1 + axis] * (length - size + 1)).long().view(batch, 1, *(1,) * len(spatial))
        place = torch.arange(length, device=device).view(1, 1, *along)
        mask &= (start <= place) & (place < start + size)
    inner = (drawn[:, 0] < 0.5).view(batch, 1, *(1,) * len(spatial))
    return mask == inner


def labels_of_target(target: Tensor, classes: int, regions: bool) -> Tensor:
    """nnU-Net's target in the form of ``pseudo_labels``; every voxel counts, except those with the ignore label.

    Args:
        target: (B, 1, *spatial) labels, or (B, C or C + 1, *spatial) regions; the last of C + 1 is the ignore label.
        classes: C, number of channels of the logits; also the ignore label, if there is one.

    >>> labels_of_target(torch.ones(1, 2, 1, 1), classes=2, regions=True).flatten().tolist()
    [True, True, False]
    """
    if not regions:
        return target.long()
    inside = target > 0
    return inside if target.shape[1] > classes else torch.cat((inside, torch.zeros_like(inside[:, :1])), 1)
