"""Match points of two volumes by their embeddings, and measure the cycle error of each match."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

VALUES = 2**24  # number of similarities computed at once; limits the memory and does not change the result


@dataclass(frozen=True)
class Embedding:
    """The two embeddings of a volume of ``shape`` voxels.

    Attributes:
        fine: (D, *fine grid), unit vectors of the fine cells whose centres lie in the volume, at least one per axis.
        coarse: (D, *coarse grid), unit vectors; the grid may extend beyond the volume.
        norm: (*fine grid), norm of the coarse vectors after trilinear interpolation at the fine cells.
        fine_cell, coarse_cell: size of the cells in voxels.
        spacing: in mm per voxel.

    >>> fine, coarse = (F.normalize(torch.ones(8, n, n, n), dim=0) for n in (8, 1))
    >>> make_embedding(fine, coarse, (2, 2, 2), (16, 16, 16), (16, 16, 16), (1.0, 1.0, 1.0)).full_grid
    (8, 8, 8)
    """

    fine: Tensor
    coarse: Tensor
    norm: Tensor
    fine_cell: tuple[int, ...]
    coarse_cell: tuple[int, ...]
    shape: tuple[int, ...]
    spacing: tuple[float, ...]

    @property
    def full_grid(self) -> tuple[int, ...]:
        """Size of a fine grid that covers the whole coarse map."""
        cells = zip(self.coarse.shape[1:], self.coarse_cell, self.fine_cell, strict=True)
        return tuple(n * c // f for n, c, f in cells)


class Descriptors(NamedTuple):
    """Fine and coarse descriptors of N points: unit vectors, (N, D) each.

    >>> Descriptors(torch.zeros(5, 8), torch.zeros(5, 8)).fine.shape
    torch.Size([5, 8])
    """

    fine: Tensor
    coarse: Tensor


class Matches(NamedTuple):
    """Matched points (N, 3) in voxels, similarity (N,) in [-1, 1], and cycle error (N,) in mm.

    The cycle error is the distance from a point to the match of its match.

    >>> Matches(torch.zeros(5, 3), torch.ones(5), torch.zeros(5)).points.shape
    torch.Size([5, 3])
    """

    points: Tensor
    similarity: Tensor
    cycle_error: Tensor


def make_embedding(
    fine: Tensor, coarse: Tensor, fine_cell: Sequence[int], coarse_cell: Sequence[int], shape: Sequence[int],
    spacing: Sequence[float],
) -> Embedding:  # fmt: skip
    """Build an embedding from the maps (D, *grid) of a volume that was padded at its end to whole coarse cells."""
    inside = tuple(slice(max(1, math.ceil(n / c - 0.5))) for n, c in zip(shape, fine_cell, strict=True))
    all_channels_inside = (slice(None), *inside)
    square = torch.zeros(fine.shape[1:], dtype=fine.dtype, device=fine.device)
    for part in coarse.split(16):  # all channels at once would need as much memory as the fine map again
        upsampled = F.interpolate(part[None], size=fine.shape[1:], mode="trilinear", align_corners=False)
        square += upsampled[0].square().sum(0)
    norm = square.sqrt().clamp(min=1e-6)[inside].contiguous()
    return Embedding(
        fine[all_channels_inside].contiguous(), coarse, norm, tuple(fine_cell), tuple(coarse_cell), tuple(shape),
        tuple(spacing),
    )  # fmt: skip


def describe(embedding: Embedding, points: Tensor) -> Descriptors:
    """Descriptors of points (N, 3) in voxels, taken at the centre of the fine cell that contains each point."""
    cell = torch.tensor(embedding.fine_cell, device=points.device)
    last = torch.tensor(embedding.fine.shape[1:], device=points.device) - 1
    index = torch.minimum((points / cell).floor().long().clamp(min=0), last)
    fine = embedding.fine[:, index[:, 0], index[:, 1], index[:, 2]].T
    full = torch.tensor(embedding.full_grid, device=points.device)
    location = ((index + 0.5) * 2 / full - 1).flip(-1)  # grid_sample expects the order x, y, z and the range [-1, 1]
    grid = location.to(embedding.coarse.dtype)[None, :, None, None]
    coarse = F.grid_sample(embedding.coarse[None], grid, padding_mode="border", align_corners=False)
    return Descriptors(fine, F.normalize(coarse[0, :, :, 0, 0].T, dim=1))


def locate(wanted: Descriptors, embedding: Embedding) -> tuple[Tensor, Tensor]:
    r"""Find the most similar fine cell of each descriptor: its centre (N, 3) in voxels, and the similarity (N,).

    .. math:: \mathrm{sim}(v) = \tfrac12 (\langle f, f(v) \rangle + \langle c, c(v) \rangle)

    over all fine cells v (SAM, arXiv 2012.02383), with c(v) the coarse embedding interpolated to v: the coarse map
    determines the body part, and the fine map the position within it. Interpolation is linear, so interpolating the
    coarse similarity and dividing by the norm of the interpolated vector gives the same result at a lower cost.
    """
    grid = embedding.fine.shape[1:]
    all_points_inside = (slice(None), *(slice(n) for n in grid))
    fine, coarse = embedding.fine.flatten(1), embedding.coarse.flatten(1)
    inverse = 0.5 / embedding.norm
    best, score = [], []
    chunk = max(1, VALUES // math.prod(embedding.full_grid))
    for f, c in zip(wanted.fine.split(chunk), wanted.coarse.split(chunk), strict=True):
        similarity = (c @ coarse).view(-1, 1, *embedding.coarse.shape[1:])
        similarity = F.interpolate(similarity, size=embedding.full_grid, mode="trilinear", align_corners=False)
        similarity = similarity[:, 0][all_points_inside].mul_(inverse).flatten(1)
        similarity.addmm_(f, fine, alpha=0.5)  # in place, because these maps dominate the cost
        index = similarity.argmax(1)
        value = similarity.gather(1, index[:, None])[:, 0]
        best.append(index)
        score.append(value)
    cell = torch.tensor(embedding.fine_cell, device=fine.device)
    index = torch.stack(torch.unravel_index(torch.cat(best), grid), -1)
    return (index + 0.5) * cell, torch.cat(score)


def match_points(source: Embedding, target: Embedding, points: Tensor) -> Matches:
    """Match points (N, 3), in voxels of the source volume, to the target, and match the result back to the source.

    >>> fine, coarse = (F.normalize(torch.randn(8, n, n, n), dim=0) for n in (8, 1))
    >>> embedding = make_embedding(fine, coarse, (2, 2, 2), (16, 16, 16), (16, 16, 16), (1.0, 1.0, 1.0))
    >>> match_points(embedding, embedding, torch.tensor([[3.0, 5.0, 7.0]])).points
    tensor([[3., 5., 7.]])

    Raises:
        ValueError: the embeddings come from different networks.
    """
    if len(source.fine) != len(target.fine) or source.fine_cell != target.fine_cell:
        raise ValueError(
            f"The two embeddings come from different networks: {len(source.fine)} channels with cells of "
            f"{source.fine_cell} voxels, and {len(target.fine)} channels with cells of {target.fine_cell} voxels. "
            "Embed both volumes with the same checkpoint."
        )
    found, similarity = locate(describe(source, points), target)
    back, _ = locate(describe(target, found), source)
    spacing = torch.tensor(source.spacing, device=points.device)
    return Matches(found, similarity, ((back - points) * spacing).norm(dim=-1))
