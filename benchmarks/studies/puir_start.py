"""How many steps does PUIRTrainer need to leave the plateau on which it predicts the same in all voxels?

    python -m benchmarks.studies.puir_start --data DIR --work DIR [--sets myops pgbm] [--seeds 0 1 2] [--arms NAME ...]

Each cell is the start of a training of 20 x 50 iterations with 8 features and batches of two, on all cases of the set.
The plateau is the loss of a network whose output in every voxel is the frequency of the classes in the first 50
batches. A cell ends when the mean loss of 20 steps is 0.25 below it, or after --steps. Losses and processor time are
recorded. Cells are written one by one: run the same command again after an interruption, or with more seeds or arms.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import STOCK_PLANS, Steps, cpu_sized, environment, study_parser, use_tree, write_file
from benchmarks.studies.puir_data import lay_out_pgbm
from benchmarks.studies.raw_data import link_cases
from benchmarks.tables import markdown
from nnunet_invariance._discovery import find_trainer
from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.plans.options import BLOCK

CONFIGURATION, MYOPS = "3d_fullres", "Dataset912_MyoPS"
BASE_FEATURES, BATCH_SIZE, EPOCHS, ITERATIONS = 8, 2, 20, 50
WINDOW, MARGIN = 20, 0.25  # steps, loss
#: Patch in voxels.
PATCHES = {"myops": (4, 48, 48), "pgbm": (8, 32, 32)}
RESULTS = Path(__file__).parents[1] / "results" / "puir-start"


def uniform_gates(trainer: Any) -> None:
    """Gates that weight all modalities equally, as a mean does."""
    for fusion in trainer.plain_network.fusions:
        torch.nn.init.zeros_(fusion.modality)


#: Name of an arm: trainer, options, and what is changed before the first step.
ARMS: dict[str, tuple[str, dict[str, Any], Callable[[Any], None]]] = {
    "ChannelDropoutTrainer": ("ChannelDropoutTrainer", {}, lambda trainer: None),
    "PUIRTrainer": ("PUIRTrainer_scratch", {}, lambda trainer: None),
    "PUIRTrainer, uniform gates": ("PUIRTrainer_scratch", {}, uniform_gates),
    "PUIRTrainer, no ramp": ("PUIRTrainer_scratch", {"dropout_ramp": 0.0}, lambda trainer: None),
    "PUIRTrainer, uniform gates, no ramp": ("PUIRTrainer_scratch", {"dropout_ramp": 0.0}, uniform_gates),
    "PUIRTrainer, own stems": ("PUIRTrainer_scratch", {"stem": "own"}, lambda trainer: None),
    "PUIRTrainer, no distillation": ("PUIRTrainer_scratch", {"weight_distillation": 0.0}, lambda trainer: None),
}


def main() -> int:
    """Run every cell that is not finished; returns the exit status."""
    parser = study_parser(__doc__, RESULTS)
    parser.add_argument("--sets", nargs="+", choices=list(PATCHES), default=list(PATCHES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS)[:2])
    parser.add_argument("--steps", type=int, default=400, help="at most, of a cell")
    args = parser.parse_args()
    args.work = args.work.resolve()
    use_tree(args.work)
    torch.set_num_threads(1)
    try:
        datasets = {name: prepare(name, args) for name in args.sets}
        os.environ["nnUNet_n_proc_DA"] = "0"  # batches are made in this process, whose time is measured
        for seed in args.seeds:
            for name, dataset in datasets.items():
                for arm in args.arms:
                    run(args, name, dataset, arm, seed)
                    publish(args)
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def prepare(name: str, args: argparse.Namespace) -> str:
    """Lay out, plan and preprocess a set; returns the name of the data set."""
    raw = args.work / "nnUNet_raw"
    if name == "pgbm":
        dataset = lay_out_pgbm(args.data, raw, 0).dataset
    else:
        dataset = MYOPS
        link_cases(args.data / dataset, raw / dataset)
    Steps(args.work).plan(dataset, CONFIGURATION, f"plan_{name}")
    return dataset


def run(args: argparse.Namespace, name: str, dataset: str, arm: str, seed: int) -> None:
    """Train one cell until it leaves the plateau, and write its losses."""
    file = args.work / "cells" / f"{name}__{arm.replace(', ', '-').replace(' ', '_')}__{seed}.json"
    if file.is_file():
        return
    trainer_name, options, change = ARMS[arm]
    trainer = start(args, name, dataset, trainer_name, {**options, "seed": seed})
    change(trainer)
    losses: list[float] = []
    targets: list[Any] = []
    plateau, left = -math.inf, None
    began = time.process_time()
    while len(losses) < args.steps and left is None:
        if len(losses) % ITERATIONS == 0:
            trainer.current_epoch = len(losses) // ITERATIONS
            trainer.on_train_epoch_start()
        batch = next(trainer.dataloader_train)
        losses.append(float(trainer.train_step(batch)["loss"]))
        if len(losses) <= ITERATIONS:
            targets.append(batch["target"])
        if len(losses) == ITERATIONS:
            plateau = constant_loss(trainer, targets)
        left = left_after(losses, plateau)
    seconds = (time.process_time() - began) / len(losses)
    cell = {"set": name, "arm": arm, "seed": seed, "seconds": round(seconds, 3), "plateau": plateau}
    write_json(file, {**cell, "losses": [round(loss, 4) for loss in losses]})
    shutil.rmtree(trainer.output_folder_base, ignore_errors=True)
    print({**cell, "left": left}, flush=True)


def left_after(losses: Sequence[float], plateau: float) -> int | None:
    """Number of steps after which the mean of the last 20 losses is first below the plateau; None if it never is."""
    for number in range(WINDOW, len(losses) + 1):
        if statistics.mean(losses[number - WINDOW : number]) < plateau - MARGIN:
            return number
    return None


def constant_loss(trainer: Any, targets: list[Any]) -> float:
    """Mean loss over batches if the output in every voxel is the frequency of the classes in these batches."""
    classes = trainer.label_manager.num_segmentation_heads
    counts = sum(torch.bincount(scales[0].long().clamp(min=0).flatten(), minlength=classes) for scales in targets)
    logits = (counts / counts.sum()).clamp(min=1e-6).log().view(1, -1, 1, 1, 1)
    losses = []
    for scales in targets:
        outputs = [logits.expand(len(scale), -1, *scale.shape[2:]) for scale in scales]
        losses.append(float(trainer.loss(outputs, scales)))
    return statistics.mean(losses)


def start(args: argparse.Namespace, name: str, dataset: str, trainer_name: str, options: dict[str, Any]) -> Any:
    """A trainer on all cases, ready for its first step."""
    folder = args.work / "nnUNet_preprocessed" / dataset
    plans = read_json(folder / f"{STOCK_PLANS}.json")
    entry = plans["configurations"][CONFIGURATION]
    entry.update(cpu_sized(entry, PATCHES[name], BASE_FEATURES, BATCH_SIZE))
    entry[BLOCK] = {"iterations_per_epoch": ITERATIONS, "val_iterations_per_epoch": 1, **options}
    kind = find_trainer(f"{trainer_name}_{EPOCHS}epochs")
    described = read_json(folder / "dataset.json")
    trainer = kind({**plans, "continue_training": False}, CONFIGURATION, "all", described, torch.device("cpu"))
    trainer.on_train_start()
    trainer.on_epoch_start()
    return trainer


def publish(args: argparse.Namespace) -> None:
    """Write the table and the numbers of all cells."""
    cells = [json.loads(path.read_text()) for path in sorted((args.work / "cells").glob("*.json"))]
    lines = []
    for name, arm in dict.fromkeys((cell["set"], cell["arm"]) for cell in cells):
        own = [cell for cell in cells if (cell["set"], cell["arm"]) == (name, arm)]
        found = [left_after(cell["losses"], cell["plateau"]) for cell in own]
        steps = ", ".join(
            str(left or f"more than {len(cell['losses'])}") for left, cell in zip(found, own, strict=True)
        )
        seconds = statistics.median(cell["seconds"] for cell in own)
        lines.append([name, arm, ", ".join(str(cell["seed"]) for cell in own), steps, f"{seconds:.2f}"])
    head = ["set", "arm", "seeds", "steps until the plateau was left", "processor seconds a step"]
    write_file(args.out / "tables.md", f"{markdown(head, lines)}\n".encode())
    content = {"environment": environment("cpu", 1), "cells": cells}
    write_file(args.out / "results.json", (json.dumps(content, indent=None) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
