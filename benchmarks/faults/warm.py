"""Child processes that start in milliseconds, because they are forked from a server that has imported everything.

The server has run nothing: a child of a process in which torch has computed a gradient could not compute one itself.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["benchmarks.faults.file_faults", "benchmarks.faults.run_faults", "benchmarks.faults.setting_faults"]
)
#: One thread, and no data workers of nnU-Net.
QUIET = {"OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "0", "MPLBACKEND": "agg"}


def start(environment: Mapping[str, str], output: Path, function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Start a function in a child; both streams go to the file ``output``."""
    process = CONTEXT.Process(target=_run, args=(dict(environment), output, function, arguments))
    os.environ.update(QUIET)  # the server keeps the environment in which it started
    process.start()
    return process


def _run(environment: dict[str, str], output: Path, function: Callable[..., Any], arguments: tuple) -> None:
    import torch

    output.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update({**QUIET, **environment})
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as in the command line, and not that of the server
    function(*arguments)


def wait(process: BaseProcess, seconds: float) -> int | None:
    """The exit status of a child (negative: the signal that ended it), or None if it runs longer."""
    end = time.monotonic() + seconds
    while process.exitcode is None and time.monotonic() < end:
        process.join(0.005)
    return process.exitcode


def trees() -> dict[str, str]:
    """nnU-Net's folders in this process, for the children."""
    return {name: value for name, value in os.environ.items() if name.startswith("nnUNet_")}
