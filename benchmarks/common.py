"""What benchmarks share: numbers beside the machine and versions they were taken with, and steps that run once."""

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.evaluation.runner.stock_commands import run_command

# On few cores, the processes that nnU-Net starts by default cost more than the work they do; and threads that spin
# while they wait slow everything down tenfold once the cores have other work; and memory that glibc hands back after
# every step, to ask for it again, costs a fifth of a training. No result depends on any of them.
FEW_CORES = {
    "nnUNet_def_n_proc": "1",
    "nnUNet_n_proc_DA": "1",
    "nnUNet_npp": "0",
    "nnUNet_nps": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
}
MOST_POOLINGS, LEAST_SIDE = 4, 4  # of a network for a CPU, and of its deepest map in voxels


def use_tree(work: Path) -> None:
    """Have nnU-Net's three folders below ``work``, and few processes unless the environment says otherwise."""
    os.environ.update({f"nnUNet_{tree}": str(work / f"nnUNet_{tree}") for tree in ("raw", "preprocessed", "results")})
    for variable, value in FEW_CORES.items():
        os.environ.setdefault(variable, value)


class Steps:
    """Runs the commands outside a comparison once, and remembers what they were and how long they took."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.file = work / "steps.json"
        self.done: dict[str, Any] = read_json(self.file, default={})

    def run(
        self,
        name: str,
        command: Sequence[str],
        on_poll: Callable[[], None] = lambda: None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Run a command once; ``name`` is its log's name. Time spent before an interruption is not counted."""
        if name in self.done:
            return
        print(f"{name}: {' '.join(command)}", flush=True)
        seconds = run_command(name, command, self.work / "logs" / f"{name}.log", self.work, environment, on_poll)
        self.done[name] = {"command": " ".join(command), "seconds": round(seconds, 1)}
        write_json(self.file, self.done)


def cpu_sized(entry: dict[str, Any], patch_size: Sequence[int], base_features: int, batch_size: int) -> dict[str, Any]:
    """Changes to a planned configuration that make its network small; patches no larger than the planned ones."""
    patch = [min(sides) for sides in zip(entry["patch_size"], patch_size, strict=True)]
    _, strides, kernels, patch, _ = get_pool_and_conv_props(entry["spacing"], patch, LEAST_SIDE, MOST_POOLINGS)
    stages, architecture = len(strides), entry["architecture"]
    arguments = {
        **architecture["arch_kwargs"],
        "n_stages": stages,
        "features_per_stage": [base_features * 2**stage for stage in range(stages)],
        "strides": [list(map(int, s)) for s in strides],
        "kernel_sizes": [list(map(int, k)) for k in kernels],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    return {
        "patch_size": list(map(int, patch)),
        "batch_size": batch_size,
        "architecture": {**architecture, "arch_kwargs": arguments},
    }


def write_file(path: Path, content: bytes) -> None:
    """Atomically, in a folder that need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: file.write(content))


def rounds_parser(documentation: str) -> argparse.ArgumentParser:
    """For benchmarks that take turns with training steps on a data set, in rounds."""
    parser = argparse.ArgumentParser(description=documentation.splitlines()[0])
    parser.add_argument("dataset", help="name or id, preprocessed")
    parser.add_argument("configuration")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans")
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file; printed only by default")
    return parser


def environment(device: str, threads: int) -> dict[str, Any]:
    """What the numbers depend on; to be read before the measuring, for the load of the machine."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_at_start": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nnunetv2": version("nnunetv2"),
    }


def publish(benchmark: str, described: dict[str, Any], result: dict[str, Any], out: Path | None) -> None:
    """Print a benchmark's result as JSON, and write it where ``out`` says so."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    text = json.dumps({"benchmark": benchmark, "created": created, "environment": described, **result}, indent=2)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
