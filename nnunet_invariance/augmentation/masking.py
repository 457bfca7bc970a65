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


def cell_statistics(image: Tensor, cell: Sequence[int], floor: float = 0.1) -> tuple[Tensor, Tensor]:
    r"""Mean and standard deviation of every cell, at each of its voxels (arXiv 2111.06377, normalised targets).

    .. math:: s_c = \sqrt{\mathrm{var}_c + (\mathrm{floor} \cdot s)^2}

    s is the standard deviation of the channel. The floor keeps the noise of flat cells, such as air, small.

    Shape: image (B, C, *spatial), a multiple of ``cell`` (voxels per axis); returns two tensors of that shape, float32.

    >>> mean, deviation = cell_statistics(torch.tensor([[[[1.0, 3.0], [1.0, 3.0]]]]), (2, 2), floor=0.0)
    >>> mean[0, 0, 0, 0].item(), deviation[0, 0, 0, 0].item()
    (2.0, 1.0)
    """
    pool, cell = {2: F.avg_pool2d, 3: F.avg_pool3d}[image.ndim - 2], tuple(cell)
    image = image.float()
    mean = pool(image, cell, cell)
    # of differences, because the difference of two squares is inexact if the mean is large
    variance = pool((image - upsample_cells(mean, cell)).square(), cell, cell)
    whole = image.flatten(2).var(2, correction=0).view(*image.shape[:2], *[1] * (image.ndim - 2))
    deviation = (variance + floor**2 * whole).clamp(min=1e-12).sqrt()
    return upsample_cells(mean, cell), upsample_cells(deviation, cell)
