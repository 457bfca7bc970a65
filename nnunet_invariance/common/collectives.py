"""Collective operations on tensors and objects of all ranks; they also work without a process group."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "all_gather_objects",
    "all_gather_rows",
    "all_reduce_max",
    "all_reduce_sum",
    "gather_row_counts",
    "get_rank",
    "get_world_size",
    "on_first_rank",
]

Result = TypeVar("Result")


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if _initialized() else 0


def get_world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if _initialized() else 1


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum over all ranks, in place."""
    if get_world_size() > 1:
        dist.all_reduce(value)
    return value


def all_reduce_max(value: Tensor) -> Tensor:
    """Element-wise maximum over all ranks, in place."""
    if get_world_size() > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def gather_row_counts(count: int, device: torch.device) -> list[int]:
    """Gather the number of rows of each rank, using tensors on ``device``."""
    if get_world_size() == 1:
        return [count]
    counts = [torch.empty(1, dtype=torch.long, device=device) for _ in range(get_world_size())]
    dist.all_gather(counts, torch.tensor([count], device=device))
    return torch.cat(counts).tolist()


def all_gather_rows(rows: Tensor, sizes: list[int]) -> Tensor:
    """Concatenate the rows (n, ...) of all ranks to (N, ...) in rank order, detached from the graph.

    >>> all_gather_rows(torch.ones(2, 3), [2]).shape
    torch.Size([2, 3])

    Args:
        rows: rows of this rank.
        sizes: number of rows on each rank, see :func:`gather_row_counts`.
    """
    if len(sizes) == 1:
        return rows.detach()
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))  # all_gather needs equal shapes
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def all_gather_objects(value: Result) -> list[Result]:
    """Gather a value of built-in types or NumPy arrays from each rank, in rank order.

    >>> all_gather_objects({"dice": 0.5})
    [{'dice': 0.5}]
    """
    if get_world_size() == 1:
        return [value]
    ranks: list[Any] = [None] * get_world_size()
    dist.all_gather_object(ranks, value)
    return ranks


def on_first_rank(compute: Callable[[], Result]) -> Result:
    """Compute on the first rank and give the result, or the error, to all ranks.

    >>> on_first_rank(lambda: 3)
    3
    """
    if get_world_size() == 1:
        return compute()
    shared: list[Any] = [None, None]
    if get_rank() == 0:
        try:
            shared = [compute(), None]
        except Exception as error:  # noqa: BLE001  raised below, on every rank
            shared = [None, error]
    dist.broadcast_object_list(shared, 0)
    if shared[1] is not None:
        raise shared[1]
    return shared[0]
