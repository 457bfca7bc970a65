"""Painting of templates over one another, block by block, only where a template can be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.synthesis.templates import TemplateBank

CACHED_VOXELS = 2**16
BLOCK = 8  # voxels per side


class PlacedTemplates(Protocol):
    """Templates of one label map; later ones cover earlier ones.

    Attributes:
        templates: (n,) indices into the bank.
        matrices: (n, 3, 3), from voxels of the map to voxels of the template.
        shifts: (n, 3) voxels.
    """

    @property
    def templates(self) -> Tensor: ...

    @property
    def matrices(self) -> Tensor: ...

    @property
    def shifts(self) -> Tensor: ...


def paint(bank: TemplateBank, maps: Sequence[PlacedTemplates], size: Sequence[int], first: int = 1) -> Tensor:
    """Give template k the value ``first`` + k wherever one of its periodic copies, read at M x + t, is.

    Returns (B, 1, *size), uint8, on the device of the bank; 0 where no template is.
    """
    device = bank.flat.device
    side = math.gcd(BLOCK, *size)
    counts = [n // side for n in size]
    blocks = torch.zeros(len(maps) * math.prod(counts), side, side, side, dtype=torch.uint8, device=device)
    # A CPU is several times faster on few voxels that stay in its cache; a GPU needs all of them at once.
    at_once = len(blocks) if device.type != "cpu" else max(1, CACHED_VOXELS // side**3)
    stencil = _stencil(bank, maps, counts, side)
    for k, (start, end) in enumerate(pairwise(stencil.ends)):
        for row in stencil.reached[start:end].split(at_once):
            index = stencil.index(row)
            inside = bank.flat.index_select(0, index.reshape(-1)).reshape(index.shape)
            chosen = stencil.blocks(row)
            blocks[chosen] = blocks[chosen].masked_fill_(inside.bool(), first + k)
    labels = blocks.reshape(len(maps), *counts, side, side, side).permute(0, 1, 4, 2, 5, 3, 6)
    return labels.reshape(len(maps), 1, *size)


@dataclass(frozen=True)
class _Stencil:
    """Where in the flat bank the voxels of the blocks read the templates; T templates of all maps, k-th ones together.

    Attributes:
        lines: for each axis of a map (T, 3, blocks, side): its contribution to the position along each axis of the
            template, in periods.
        periods, fronts, extents: (T, 3).
        offsets: (T,), first voxel of the template's crop in the flat bank.
        owners: (T,), the map of each template.
        counts: blocks along each axis.
        reached: (R, 2), template and block of all pairs that may overlap, sorted by template.
        ends: start of the k-th templates in ``reached``, for all k, and the end.
    """

    lines: tuple[Tensor, Tensor, Tensor]
    periods: Tensor
    fronts: Tensor
    extents: Tensor
    offsets: Tensor
    owners: Tensor
    counts: Sequence[int]
    reached: Tensor
    ends: list[int]

    def blocks(self, row: Tensor) -> Tensor:
        """Numbers, over all maps, of the blocks in these rows of ``reached``."""
        return self.owners[row[:, 0]] * math.prod(self.counts) + row[:, 1]

    def index(self, row: Tensor) -> Tensor:
        """Voxels of these rows in the flat bank, (n, side, side, side); outside the crop, its empty border."""
        template, block = row.unbind(1)
        x = block % self.counts[2]
        y = block // self.counts[2] % self.counts[1]
        z = block // (self.counts[2] * self.counts[1])
        positions = []
        for axis in range(3):
            along = [line[template, axis, at] for line, at in zip(self.lines, (z, y, x), strict=True)]
            phase = along[0][:, :, None, None] + along[1][:, None, :, None] + along[2][:, None, None, :]
            phase.sub_(phase.floor())
            period, front, extent = (_column(t[template, axis]) for t in (self.periods, self.fronts, self.extents))
            position = phase.mul_(period).floor_().sub_(front)
            positions.append(position.clamp_(min=0).clamp_(max=extent - 1))
        plane, line = (_column(self.extents[template, axis]) for axis in (1, 2))
        rows = positions[0].mul_(plane).add_(positions[1])  # integers far below 2^24: exact
        offset = _column(self.offsets[template])
        return rows.long().mul_(line.long()).add_(positions[2].long()).add_(offset)


def _column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)


def _stencil(bank: TemplateBank, maps: Sequence[PlacedTemplates], counts: Sequence[int], side: int) -> _Stencil:
    """Make all tables on the CPU and copy them to the device in two transfers, one of floats and one of integers."""
    numbers = torch.cat([torch.arange(len(one.templates)) for one in maps])  # k of each template
    order = numbers.argsort(stable=True)
    owners = torch.cat([torch.full((len(one.templates),), row) for row, one in enumerate(maps)])[order]
    chosen = torch.cat([one.templates for one in maps])[order]
    matrices = torch.cat([one.matrices for one in maps])[order]
    shifts = torch.cat([one.shifts for one in maps])[order]
    periods = bank.periods[chosen]
    lines = [matrices[:, :, a, None] * torch.arange(n * side) / periods[..., None] for a, n in enumerate(counts)]
    lines[1] = lines[1] + ((shifts + 0.5) / periods)[..., None]  # + 0.5: rounding down then gives the nearest voxel
    columns = [*lines, *(t[..., None].float() for t in (periods, bank.fronts[chosen] - 1, bank.extents[chosen]))]
    floats = copy_to(bank.flat.device, torch.cat(columns, -1))
    offsets, owners = copy_to(bank.flat.device, torch.stack((bank.offsets[chosen], owners)))
    z, y, x, period, front, extent = floats.split([part.shape[-1] for part in columns], -1)
    shaped = tuple(line.unflatten(-1, (n, side)) for line, n in zip((z, y, x), counts, strict=True))
    tables = {"periods": period[..., 0], "fronts": front[..., 0], "extents": extent[..., 0]}
    reaching = _reaching(shaped, **tables)
    reached = reaching.nonzero()
    found = reaching.sum(1).cumsum(0).tolist()
    ends = [0, *(found[last - 1] for last in torch.bincount(numbers).cumsum(0).tolist())]
    return _Stencil(shaped, **tables, offsets=offsets, owners=owners, counts=counts, reached=reached, ends=ends)


def _reaching(lines: Sequence[Tensor], periods: Tensor, fronts: Tensor, extents: Tensor) -> Tensor:
    """Which blocks may overlap the crop of each template: (T, blocks) bool."""
    z, y, x = (line.mean(-1) for line in lines)
    middle = z[..., :, None, None] + y[..., None, :, None] + x[..., None, None, :]
    reach = sum((line[:, :, 0, -1] - line[:, :, 0, 0]).abs() / 2 for line in lines)
    wide = (slice(None), slice(None), None, None, None)
    away = middle - ((fronts + extents / 2) / periods)[wide]
    away = (away - away.round()).abs()  # to the nearest copy
    # The empty border of the crop, one voxel per side, is larger than any rounding error.
    return (away <= (extents / 2 / periods + reach)[wide]).all(1).flatten(1)
