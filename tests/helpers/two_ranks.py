"""Runs code on two processes of this machine."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def torchrun(*arguments, **environment):
    """Run a program on two processes and check that it succeeds."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def on_two_ranks(function: Callable[[int], Any]) -> list[Any]:
    """What ``function(rank)`` returns on two forked processes with a gloo group; tensors, or lists of them."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=_run, args=(function, rank, folder), daemon=True) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
            assert process.exitcode == 0, f"a rank ended with {process.exitcode}"
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2)]


def _run(function: Callable[[int], Any], rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(function(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
