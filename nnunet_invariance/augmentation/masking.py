"""Random masks of cells: single cells, and columns of cells."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def valid_cells(valid: Tensor, cell: Sequence[int]) -> Tensor:
    """Cells with at least half of their voxels valid; in any case the cells with the most valid voxels of a sample.

    Shape: valid (B, 1, *spatial), a multiple of ``cell`` (voxels per axis); returns (B, 1, *grid); both boolean.
    """
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[valid.ndim - 2]
    share = pool(valid.float(), tuple(cell), tuple(cell))
    fullest = share.flatten(1).amax(1).view(-1, *[1] * (share.ndim - 1))
    return share >= fullest.clamp(max=0.5)


def sample_block_mask(cells: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Hide ``ratio`` of the valid cells of every sample, chosen uniformly.

    Shape: cells (B, 1, *grid) boolean; returns (B, 1, *grid) boolean, True where hidden. At least one valid cell stays
    visible and, if there are two or more, at least one is hidden. Invalid cells are never hidden.
    """
    flat = cells.flatten(1)
    score = torch.rand(flat.shape, generator=generator, device=flat.device).masked_fill(~flat, 2.0)
    rank = score.argsort(1).argsort(1)
    count = flat.sum(1, keepdim=True)
    hidden = (count * ratio).round().clamp(min=1)
    hidden = torch.minimum(hidden, (count - 1).clamp(min=0))
    return ((rank < hidden) & flat).view_as(cells)


def sample_tube_mask(cells: Tensor, ratio: float, generator: torch.Generator, axis: int = 0) -> Tensor:
    """Hide ``ratio`` of the whole columns of valid cells along a spatial ``axis``.

    Otherwise like :func:`sample_block_mask`, with columns instead of cells. It is the mask of Alice's release
    (arXiv 2302.05615), whose pattern is sampled in 2-D.
    """
    return sample_block_mask(cells.any(2 + axis, keepdim=True), ratio, generator) & cells


def upsample_cells(cells: Tensor, cell: Sequence[int]) -> Tensor:
    """Repeat each cell over its voxels: (B, 1, *grid) to (B, 1, *spatial)."""
    for axis, size in enumerate(cell, start=2):
        cells = cells.repeat_interleave(int(size), dim=axis)
    return cells
