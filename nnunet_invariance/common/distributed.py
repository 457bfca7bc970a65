"""The process group that torchrun describes, if any."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

#: How long ranks wait for one another. The first one alone preprocesses scans and mines pairs, which takes hours on
#: large data; the defaults (10 min with nccl, 30 with gloo) would end the run. Dead ranks are torchrun's to notice.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class DistributedContext:
    """This process among all: ``rank`` of ``world``, on ``device``."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()

    def all_reduce_max(self, *values: float) -> list[float]:
        """Element-wise maximum over all ranks."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(
            values, dtype=torch.float64, device="cpu" if dist.get_backend() == "gloo" else self.device
        )
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()


@contextmanager
def ranks(device: str) -> Iterator[DistributedContext]:
    """Join the group of torchrun (gloo on the CPU, nccl on CUDA), or run alone; leave it at the end."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield DistributedContext(0, 1, torch.device(device, 0) if device == "cuda" else torch.device(device))
        return
    place = torch.device(device)
    if device == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield DistributedContext(dist.get_rank(), world, place)
    finally:
        dist.destroy_process_group()
