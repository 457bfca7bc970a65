"""Code that benchmarks share: the recorded environment, published results, and steps that run once."""

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
from nnunet_invariance.weights.locate import FINAL, LATEST

# Settings for machines with few cores; no result depends on them. nnU-Net's default worker processes cost more than
# they save. Threads that spin while they wait slow everything down tenfold when the cores have other work. Memory that
# glibc returns after every step and requests again costs a fifth of the training time.
FEW_CORES = {
    "nnUNet_def_n_proc": "1",
    "nnUNet_n_proc_DA": "1",
    "nnUNet_npp": "0",
    "nnUNet_nps": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
}
STOCK_PLANS = "nnUNetPlans"
MOST_POOLINGS, LEAST_SIDE = 4, 4  # downsampling steps of a CPU-sized network; shortest side of its deepest map (voxels)


def use_tree(work: Path) -> None:
    """Set nnU-Net's three folders below ``work``, and few processes unless the environment sets another number."""
    os.environ.update({f"nnUNet_{tree}": str(work / f"nnUNet_{tree}") for tree in ("raw", "preprocessed", "results")})
    for variable, value in FEW_CORES.items():
        os.environ.setdefault(variable, value)


class Steps:
    """Runs each command of a study once, and records the command and its duration in ``steps.json``."""

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
        """Run a command once; ``name`` names its log. Time before an interruption is not counted."""
        if name in self.done:
            return
        print(f"{name}: {' '.join(command)}", flush=True)
        seconds = run_command(name, command, self.work / "logs" / f"{name}.log", self.work, environment, on_poll)
        self.done[name] = {"command": " ".join(command), "seconds": round(seconds, 1)}
        write_json(self.file, self.done)

    def plan(self, dataset: str, configuration: str, name: str = "plan") -> dict[str, Any]:
        """Plan and preprocess a data set once, in one process; returns the configuration as nnU-Net planned it."""
        number = str(int(dataset[7:10]))
        self.run(name, ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", configuration, "-npfp", "1", "-np", "1"])
        plans = read_json(Path(os.environ["nnUNet_preprocessed"]) / dataset / f"{STOCK_PLANS}.json")
        return plans["configurations"][configuration]


def run_length(folder: Path, steps: int, epochs: int, seed: int) -> list[str]:
    """Flags of a pre-training whose state is saved after each of its epochs; one that was interrupted continues.

    Args:
        folder: of its checkpoints.
        steps: of all epochs together.
        epochs: at most one per step.
        seed: of the networks and crops.
    """
    epochs = min(epochs, steps)
    flags = ["--epochs", str(epochs), "--iterations", str(steps // epochs), "--seed", str(seed)]
    return [*flags, "--c"] if any((folder / file).is_file() for file in (LATEST, FINAL)) else flags


def cpu_sized(entry: dict[str, Any], patch_size: Sequence[int], base_features: int, batch_size: int) -> dict[str, Any]:
    """Changes to a planned configuration that make its network small; the patch is at most as large as planned."""
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
    """Write a file atomically; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: file.write(content))


def study_parser(documentation: str, out: Path) -> argparse.ArgumentParser:
    """Argument parser of a study: its data, a folder for what it makes, and one for its results, ``out`` by default."""
    parser = argparse.ArgumentParser(description=documentation.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the shared data folder; only read")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the run makes")
    parser.add_argument("--out", type=Path, default=out, help="folder for the results")
    return parser


def rounds_parser(documentation: str) -> argparse.ArgumentParser:
    """Argument parser of the benchmarks that alternate variants with training steps, in rounds."""
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
    """The machine, its load and the versions that a measurement depends on; call it before the measurement."""
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
    """Print the result of a benchmark as JSON, and write it to ``out`` if that is given."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    text = json.dumps({"benchmark": benchmark, "created": created, "environment": described, **result}, indent=2)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
