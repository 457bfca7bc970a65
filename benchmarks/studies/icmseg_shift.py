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
from benchmarks.studies.icmseg_runs import (
    BATCH_SIZE,
    CONFIGURATION,
    INFO_NCE,
    page,
    parser,
    run_draws,
    started,
    tables,
    unfinished,
    write_copies,
)
from benchmarks.tables import read_rows
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.evaluation.statistics.effects import Contrast
from nnunet_invariance.evaluation.statistics.score_table import OVERALL

PLANS, BASE_FEATURES = "nnUNetPlans_shift", 16
RESULTS = Path(__file__).parents[1] / "results" / "icmseg-shift"


class Set(NamedTuple):
    """How a data set is written, and its patch in voxels: multiples of 8, which the features of MaskGen need."""

    lay_out: Callable[..., Task]
    patch: tuple[int, int, int]


SETS = {
    # MyoPS has 3 to 6 slices of 12 to 23 mm, so that its patch is as thin as the features allow.
    **{
        f"myops_{source.lower()}": Set(functools.partial(lay_out_myops, source=source), (8, 96, 96))
        for source in ("C0", "LGE", "T2")
    },
    "hippocampus": Set(lay_out_hippocampus, (32, 32, 32)),
}
ICMSEG, MASKGEN = "ICMSegTrainer", "MaskGenTrainer"
DEFAULTS = "image without InfoNCE"  # the arm with the defaults of ICMSegTrainer
SINGLE = {"style_views": "single"}
#: Trainer and options of each arm, the most important first.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "DA5": ("BaselineTrainerDA5", {}),
    "image": (ICMSEG, INFO_NCE),
    "labels": (ICMSEG, {**INFO_NCE, "tissues": "labels"}),
    "nnUNet": ("BaselineTrainer", {}),
    "clusters": (ICMSEG, {**INFO_NCE, "style": "clusters"}),
    "single 0.5": (ICMSEG, {**SINGLE, "style_probability": 0.5}),
    DEFAULTS: (ICMSEG, {}),
    "MaskGen": (MASKGEN, {}),
    "MaskGen single 0.5": (MASKGEN, {**SINGLE, "style_probability": 0.5}),
    "clusters without InfoNCE": (ICMSEG, {"style": "clusters"}),
    "single 1": (ICMSEG, {**SINGLE, "style_probability": 1.0}),
    "pair 0.5": (ICMSEG, {**INFO_NCE, "style_probability": 0.5}),
    "InfoNCE supcon share 0.1": (ICMSEG, {"label_mask": "supcon", "aux_gradient_share": 0.1}),
    "single 0.5 late": (ICMSEG, {**SINGLE, "style_probability": 0.5, "style_start": 0.25, "style_ramp": 0.25}),
}


def main() -> int:
    """Run every cell that is not finished; returns the exit status."""
    arguments = parser(__doc__, RESULTS, SETS, epochs=40)
    arguments.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="arms, in their order")
    args = arguments.parse_args()
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
                run_draws(name, task, PLANS, selection(args.arms[:count], args.epochs), draws, args)
                publish(args)


def prepare(name: str, args: argparse.Namespace) -> Task:
    """Write the data, plan and preprocess, and write CPU-sized copies of the plans: a shared one, and one per arm."""
    lay_out, patch = SETS[name]
    task = lay_out(args.data, args.work / "nnUNet_raw", args.seed)
    entry = Steps(args.work).plan(task.source, CONFIGURATION, f"plan_{task.source}")
    changes = cpu_sized({**entry, "patch_size": list(patch)}, patch, BASE_FEATURES, BATCH_SIZE)
    write_copies(task, changes, {PLANS: {}, **{plans_of(arm): ARMS[arm][1] for arm in args.arms}}, args)
    return task


def plans_of(arm: str) -> str:
    """Name of the plans copy of an arm."""
    return f"{PLANS}_{arm.replace(' ', '_').replace('.', '')}"


def selection(names: list[str], epochs: int) -> Selection:
    """The arms, each compared with plain nnU-Net with stronger augmentation, and with ICMSegTrainer's defaults."""
    arms = tuple(Arm(name, f"{ARMS[name][0]}_{epochs}epochs", plans=plans_of(name)) for name in names)
    references = [name for name in ("DA5", DEFAULTS) if name in names]
    pairs = [(name, reference) for name in names for reference in references if name != reference]
    return Selection(arms, tuple(Contrast(name, reference, reference) for name, reference in pairs))


def publish(args: argparse.Namespace) -> None:
    """Write the cells that are finished, tables of them, and a list of those that are not."""
    parts, missing, cells = [], [], []
    for name in args.sets:
        jobs, means = started(name, args.work), args.work / name / "means.csv"
        missing += unfinished(name, jobs)
        missing += [f"- {name}: {arm}: nothing" for arm in args.arms if arm not in {job.arm.name for job in jobs}]
        parts += tables(name, args.work)
        rows = read_rows(means) if means.is_file() else []
        cells += [{"set": name, **row} for row in rows if row["metric"] == "dice" and row["label"] == OVERALL]
    length = {name: getattr(args, name) for name in ("epochs", "iterations", "precision")}
    described = {"environment": args.environment, **length, "cells": cells}
    write_file(args.out / "cells.json", f"{json.dumps(described, indent=1)}\n".encode())
    write_file(args.out / "tables.md", page(parts, missing))


if __name__ == "__main__":
    sys.exit(main())
