"""Cost of the second view: seconds per step, seconds per batch and peak memory, compared with nnUNetTrainer.

    python -m benchmarks.micro.aux_cost DATASET CONFIGURATION [-p PLANS] [-device cpu] [--rounds 10] [--steps 3] \
        [--out FILE]

The data set must be preprocessed. The trainers take turns within one run; the ratio is computed per round, and the
median and range of the ratios are published. The clock is the processor time of this process on a CPU, because other
processes hardly disturb it, and wall time on a GPU. Memory is measured in a separate process per trainer.
"""

import argparse
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from tqdm import trange

from benchmarks.common import environment, publish, rounds_parser
from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.trainers.alice import AliceTrainer

STOCK = "nnUNetTrainer"


class Scratch(AliceTrainer):
    """The twin, which needs no weights."""

    scratch = True


VARIANTS: dict[str, tuple[type[nnUNetTrainer], dict[str, Any]]] = {
    STOCK: (nnUNetTrainer, {}),
    "aux false": (Scratch, {"aux": False, "head": "stock"}),
    "aux true": (Scratch, {"aux": True, "head": "stock"}),
    "aux false, summed head": (Scratch, {"aux": False, "head": "summed"}),
}


def make_trainer(variant: str, arguments: argparse.Namespace) -> tuple[nnUNetTrainer, Callable[[], dict[str, Any]]]:
    """A trainer before its first step, and a function that returns batches loaded in this process."""
    folder = Path(nnUNet_preprocessed.require(), maybe_convert_to_dataset_name(arguments.dataset))
    plans = read_json(folder / f"{arguments.plans}.json")
    dataset = read_json(folder / "dataset.json")
    trainer_class, options = VARIANTS[variant]
    plans["configurations"][arguments.configuration]["nnunet_invariance"] = options
    plans["continue_training"] = False
    trainer = trainer_class(plans, arguments.configuration, "all", dataset, torch.device(arguments.device))
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.on_train_epoch_start()
    loader, _ = trainer.get_dataloaders()
    return trainer, lambda: next(loader)


def clock(device: torch.device) -> float:
    """Current time in seconds: processor time on a CPU, synchronised wall time on a GPU."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def run_steps(trainer: nnUNetTrainer, batch: dict[str, Any], steps: int) -> float:
    """Seconds per training step."""
    start = clock(trainer.device)
    for _ in range(steps):
        trainer.train_step(batch)
    return (clock(trainer.device) - start) / steps


def measure_memory(variant: str, arguments: argparse.Namespace) -> int:
    """Peak bytes of a new process after a few steps: resident on a CPU, allocated on CUDA."""
    torch.set_num_threads(arguments.threads)
    trainer, draw = make_trainer(variant, arguments)
    run_steps(trainer, draw(), 3)
    if trainer.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def measure_time(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Seconds per variant and round, of a step and of a batch."""
    made = {variant: make_trainer(variant, arguments) for variant in VARIANTS}
    batches = {variant: draw() for variant, (_, draw) in made.items()}
    for variant, (trainer, _) in made.items():
        run_steps(trainer, batches[variant], 3)  # compilation, momentum buffers, caches
    steps: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    draws: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    order = list(VARIANTS)
    for _ in trange(arguments.rounds, desc="rounds"):
        order.append(order.pop(0))  # so that no variant is always first
        for variant in order:
            trainer, draw = made[variant]
            steps[variant].append(run_steps(trainer, batches[variant], arguments.steps))
            start = time.process_time()
            draw()
            draws[variant].append(time.process_time() - start)
    return {"seconds_per_step": summary(steps), "seconds_per_batch_in_one_worker": summary(draws)}


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Median seconds, and the median and range of the ratio to nnUNetTrainer in the same round."""
    result = {}
    for variant, values in seconds.items():
        ratios = [value / stock for value, stock in zip(values, seconds[STOCK], strict=True)]
        spread = {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
        result[variant] = {"median": statistics.median(values), "ratio": spread}
    return result


def main() -> None:
    """Measure, print and write the result."""
    parser = rounds_parser(__doc__)
    parser.add_argument("--steps", type=int, default=3, help="per round and trainer")
    arguments = parser.parse_args()
    described = environment(arguments.device, arguments.threads)
    os.environ["nnUNet_n_proc_DA"] = "0"
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results
        context = multiprocessing.get_context("spawn")
        memory = {}
        for variant in VARIANTS:
            with context.Pool(1) as pool:
                memory[variant] = pool.apply(measure_memory, (variant, arguments))
        times = measure_time(arguments)
    result = {
        "input": {name: getattr(arguments, name) for name in ("dataset", "configuration", "plans", "rounds", "steps")},
        **times,
        "peak_memory_bytes": memory,
    }
    publish("aux_cost", described, result, arguments.out)


if __name__ == "__main__":
    main()
