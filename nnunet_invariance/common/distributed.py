"""Process group of a run started by torchrun; a run without torchrun has a single rank."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["DistributedContext", "distributed_context"]

#: Timeout of collective operations. The other ranks wait while rank 0 preprocesses scans and mines pairs, which takes
#: hours for large datasets, longer than PyTorch's defaults (10 minutes for nccl, 30 for gloo). torchrun itself detects
#: dead ranks.
TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class DistributedContext:
    """Rank and device of this process.

    >>> context = DistributedContext(rank=0, world_size=1, device=torch.device("cpu"))
    >>> context.is_main, context.all_reduce_max(1.0, 2.0)
    (True, [1.0, 2.0])
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all ranks have reached this call."""
        if self.world_size > 1:
            dist.barrier()

    def all_reduce_max(self, *values: float) -> list[float]:
        """Element-wise maximum over all ranks."""
        if self.world_size == 1:
            return list(values)
        device = "cpu" if dist.get_backend() == "gloo" else self.device
        return self.maximum(torch.tensor(values, dtype=torch.float64, device=device)).tolist()

    def maximum(self, values: Tensor) -> Tensor:
        """Element-wise maximum over all ranks, in place; the host does not wait for the device."""
        if self.world_size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values


@contextmanager
def distributed_context(device: str) -> Iterator[DistributedContext]:
    """Join torchrun's process group (gloo on the CPU, nccl on CUDA), or run as a single rank; leave the group at exit.

    >>> with distributed_context("cpu") as context:
    ...     context.rank, context.world_size
    (0, 1)

    Args:
        device: ``"cuda"``, ``"cpu"`` or ``"mps"``.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield DistributedContext(0, 1, torch.device(device, 0) if device == "cuda" else torch.device(device))
        return
    own = torch.device(device)
    if device == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield DistributedContext(dist.get_rank(), world_size, own)
    finally:
        dist.destroy_process_group()
