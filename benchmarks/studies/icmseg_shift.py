"""Training for another contrast: which options keep the trained contrast, and what is gained on real ones?

    python -m benchmarks.studies.icmseg_shift --data DIR --work DIR [--sets myops_c0 ...] [--arms DA5 ...] [--seeds 3]

The networks are trained on one sequence of MyoPS (C0, LGE or T2) and tested on all three of other people, or on
Hippocampus and tested on four contrasts. The test set of the trained contrast shows what the styles cost. The cells run
in the order of seeds, data sets and arms below, so that an interrupted run has the most important ones; the same
command continues it. After every cell, cells.json and tables.md of ``--out`` are written. MyoPS: research only, its
images may not be redistributed.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import Steps, cpu_sized, environment, use_tree, write_file
from benchmarks.studies.icmseg_data import Task, lay_out_hippocampus, lay_out_myops
from benchmarks.tables import effect_table, mean_table, read_rows
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.protocols.cross_modality import run_cross_modality
from nnunet_invariance.evaluation.protocols.protocol import ProtocolOptions
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.evaluation.runner.stored import state, stored_jobs
from nnunet_invariance.evaluation.statistics.effects import Contrast
from nnunet_invariance.evaluation.statistics.score_table import OVERALL
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.plans.copies import write_plans_copy

CONFIGURATION, STOCK_PLANS, PLANS = "3d_fullres", "nnUNetPlans", "nnUNetPlans_shift"
BASE_FEATURES, BATCH_SIZE, VAL_ITERATIONS = 16, 2, 2
RESULTS = Path(__file__).parents[1] / "results" / "icmseg-shift"


class Set(NamedTuple):
    """How a data set is written, its patch in voxels, and the precision of the training.

    The patch has multiples of 8, which the features of MaskGen need.
    """

    lay_out: Callable[..., Task]
    patch: tuple[int, int, int]
    precision: str = "auto"


def _myops(source: str) -> Set:
    """MyoPS has 3 to 6 slices of 12 to 23 mm, so that its patch is as thin as the features allow.

    Not in bfloat16: on CPUs with AMX, the backward pass of a convolution of 16 channels on planes of 80 x 80 voxels or
    more ended the process (torch 2.14.1).
    """
    return Set(functools.partial(lay_out_myops, source=source), (8, 96, 96), "fp32")


SETS = {
    **{f"myops_{source.lower()}": _myops(source) for source in ("C0", "LGE", "T2")},
    "hippocampus": Set(lay_out_hippocampus, (32, 32, 32)),
}
ICMSEG, MASKGEN = "ICMSegTrainer", "MaskGenTrainer"
SINGLE = {"style_views": "single"}
#: Trainer and options of each arm, the most important first.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "DA5": ("BaselineTrainerDA5", {}),
    "image": (ICMSEG, {}),
    "labels": (ICMSEG, {"tissues": "labels"}),
    "nnUNet": ("BaselineTrainer", {}),
    "single 0.5": (ICMSEG, {**SINGLE, "style_probability": 0.5}),
    "image without InfoNCE": (ICMSEG, {"aux_weight": 0.0}),
    "MaskGen": (MASKGEN, {}),
    "MaskGen single 0.5": (MASKGEN, {**SINGLE, "style_probability": 0.5}),
    "single 1": (ICMSEG, {**SINGLE, "style_probability": 1.0}),
    "pair 0.5": (ICMSEG, {"style_probability": 0.5}),
    "InfoNCE supcon share 0.1": (ICMSEG, {"label_mask": "supcon", "aux_gradient_share": 0.1}),
    "single 0.5 late": (ICMSEG, {**SINGLE, "style_probability": 0.5, "style_start": 0.25, "style_ramp": 0.25}),
}


def main() -> int:
    """Run every cell that is not finished; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the shared data folder; only read")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the run makes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for cells.json and tables.md")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), help="data sets, in their order")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="arms, in their order")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the training cases")
    parser.add_argument("--seed", type=int, default=0, help="of test cases, draws, networks and augmentation")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--iterations", type=int, default=25, help="steps an epoch")
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cpu", help="where to train")
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.environment = environment(args.device, 1)
    use_tree(args.work)
    try:
        run_cells(args)
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        publish(args)
    return 0


def run_cells(args: argparse.Namespace) -> None:
    """Run one cell after the other: each call of the protocol has one arm or draw more than the one before."""
    tasks = {name: prepare(name, args) for name in args.sets}
    for draws in range(1, args.seeds + 1):
        for name, task in tasks.items():
            # Later draws run all arms at once, because a selection has the same arms in every draw.
            counts = range(1, len(args.arms) + 1) if draws == 1 else [len(args.arms)]
            for count in counts:
                run_cross_modality(
                    open_planned_dataset(task.source, CONFIGURATION, PLANS),
                    selection(args.arms[:count], args.epochs),
                    ProtocolOptions(
                        shots=task.shots,
                        draws=draws,
                        n_val=task.n_val,
                        seed=args.seed,
                        device=args.device,
                        mirroring=False,
                        out=args.work / name,
                    ),
                    task.targets,
                    names=task.names,
                )
                publish(args)


def prepare(name: str, args: argparse.Namespace) -> Task:
    """Write the data, plan and preprocess, and write CPU-sized copies of the plans: a shared one, and one per arm."""
    lay_out, patch, precision = SETS[name]
    task = lay_out(args.data, args.work / "nnUNet_raw", args.seed)
    number = str(int(task.source[7:10]))
    command = ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "-npfp", "1", "-np", "1"]
    Steps(args.work).run(f"plan_{task.source}", command)
    stock = json.loads((args.work / "nnUNet_preprocessed" / task.source / f"{STOCK_PLANS}.json").read_text())
    entry = {**stock["configurations"][CONFIGURATION], "patch_size": list(patch)}
    changes = cpu_sized(entry, patch, BASE_FEATURES, BATCH_SIZE)
    block = {"iterations_per_epoch": args.iterations, "val_iterations_per_epoch": VAL_ITERATIONS, "seed": args.seed}
    block["precision"] = precision
    for plans, options in [(PLANS, {}), *((plans_of(arm), ARMS[arm][1]) for arm in args.arms)]:
        write_plans_copy(task.source, STOCK_PLANS, plans, CONFIGURATION, {**block, **options}, changes)
    return task


def plans_of(arm: str) -> str:
    """Name of the plans copy of an arm."""
    return f"{PLANS}_{arm.replace(' ', '_').replace('.', '')}"


def selection(names: list[str], epochs: int) -> Selection:
    """The arms, each compared with plain nnU-Net with stronger augmentation, and with ICMSegTrainer's defaults."""
    arms = tuple(Arm(name, f"{ARMS[name][0]}_{epochs}epochs", plans=plans_of(name)) for name in names)
    references = [name for name in ("DA5", "image") if name in names]
    pairs = [(name, reference) for name in names for reference in references if name != reference]
    return Selection(arms, tuple(Contrast(name, reference, reference) for name, reference in pairs))


def publish(args: argparse.Namespace) -> None:
    """Write the cells that are finished, tables of them, and a list of those that are not."""
    parts, missing, cells = [], [], []
    for name in args.sets:
        out = args.work / name
        jobs = stored_jobs(out) if (out / "comparison.json").is_file() else []
        missing += [f"- {name}: {job.name}: {state(job)}" for job in jobs if not job.finished]
        missing += [f"- {name}: {arm}: nothing" for arm in args.arms if arm not in {job.arm.name for job in jobs}]
        if (out / "means.csv").is_file():
            rows = [r for r in read_rows(out / "means.csv") if r["metric"] == "dice" and r["label"] == OVERALL]
            cells += [{"set": name, **row} for row in rows]
            parts += [f"## {name}", mean_table(out / "means.csv"), effect_table(out / "effects.csv")]
    text = "\n\n".join([*parts, "## Not run", "\n".join(missing) or "- nothing is missing"])
    described = {"environment": args.environment, "epochs": args.epochs, "iterations": args.iterations, "cells": cells}
    write_file(args.out / "cells.json", f"{json.dumps(described, indent=1)}\n".encode())
    write_file(args.out / "tables.md", f"{text}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
