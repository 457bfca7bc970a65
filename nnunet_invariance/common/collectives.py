"""Rows of all ranks, for losses in which the rows of one rank meet those of the others."""

import torch
import torch.distributed as dist
from torch import Tensor


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Of this process; 0 without a process group."""
    return dist.get_rank() if _joined() else 0


def world() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if _joined() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if world() > 1:
        dist.all_reduce(value)
    return value


def max_over_ranks(value: Tensor) -> Tensor:
    """The largest value over all ranks, element by element, in place."""
    if world() > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def rows_per_rank(count: int, device: torch.device) -> list[int]:
    """How many rows each rank has."""
    if world() == 1:
        return [count]
    counts = [torch.empty(1, dtype=torch.long, device=device) for _ in range(world())]
    dist.all_gather(counts, torch.tensor([count], device=device))
    return torch.cat(counts).tolist()


def gather_rows(rows: Tensor, sizes: list[int]) -> Tensor:
    """(n, ...) of each rank, ``sizes`` of them, to (N, ...) in the order of the ranks; without gradient."""
    if len(sizes) == 1:
        return rows.detach()
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))  # collectives want equal shapes
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
