"""Runs code on two processes of this machine."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from tests.helpers.commands import ROOT

RANKS = 2
#: A forked process has everything imported. Autograd cannot run in one where it has started threads for a GPU.
START = "fork" if sys.platform == "linux" and not torch.accelerator.is_available() else "spawn"


def torchrun(*arguments, **environment):
    """Run a program on two processes and check that it succeeds."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def on_two_ranks(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(rank, *arguments)`` returns on two processes with a gloo group.

    Function and arguments are picklable; the function returns tensors and numbers, or lists and dictionaries of them.
    """
    context = multiprocessing.get_context(START)
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=_run, args=(rank, folder, function, arguments)) for rank in range(RANKS)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(300)
            process.kill()  # if it waits for a rank that has failed
        codes = [process.exitcode for process in ranks]
        assert codes == [0] * RANKS, f"the ranks ended with {codes}"
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(RANKS)]


def _run(rank: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, timedelta(seconds=200), rank=rank, world_size=RANKS)
    torch.save(function(rank, *arguments), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
