"""What icmseg_styles.py and icmseg_shift.py share: arguments, plans, draws of a task, and the text of its results."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import STOCK_PLANS, study_parser
from benchmarks.studies.icmseg_data import Task
from benchmarks.tables import effect_table, mean_table
from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.protocols.cross_modality import run_cross_modality
from nnunet_invariance.evaluation.protocols.protocol import ProtocolOptions
from nnunet_invariance.evaluation.runner.jobs import Job
from nnunet_invariance.evaluation.runner.stored import state, stored_jobs
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.plans.copies import write_plans_copy

CONFIGURATION = "3d_fullres"
BATCH_SIZE, VAL_ITERATIONS = 2, 2
INFO_NCE = {"aux_weight": 0.1}  # options that turn InfoNCE on


def parser(documentation: str, out: Path, sets: Iterable[str], epochs: int) -> argparse.ArgumentParser:
    """The arguments of both studies; ``out`` and ``epochs`` are defaults."""
    made = study_parser(documentation, out)
    made.add_argument("--sets", nargs="+", choices=list(sets), default=list(sets), help="data sets, in their order")
    made.add_argument("--seeds", type=int, default=3, help="draws of the training cases")
    made.add_argument("--seed", type=int, default=0, help="of test cases, draws, networks and augmentation")
    made.add_argument("--epochs", type=int, default=epochs)
    made.add_argument("--iterations", type=int, default=25, help="steps an epoch")
    made.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of every training")
    made.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cpu", help="where to train")
    return made


def write_copies(
    task: Task, changes: dict[str, Any], copies: Mapping[str, Mapping[str, Any]], args: argparse.Namespace
) -> None:
    """Write copies of nnU-Net's plans with the changes and the length of the study, and with options of their own."""
    block = {
        "iterations_per_epoch": args.iterations,
        "val_iterations_per_epoch": VAL_ITERATIONS,
        "seed": args.seed,
        "precision": args.precision,
    }
    for name, options in copies.items():
        write_plans_copy(task.source, STOCK_PLANS, name, CONFIGURATION, {**block, **options}, changes)


def run_draws(name: str, task: Task, plans: str, arms: Selection, draws: int, args: argparse.Namespace) -> None:
    """Train and test what is missing of the arms in the first draws; ``plans`` is the copy that the arms share."""
    options = ProtocolOptions(
        shots=task.shots,
        draws=draws,
        n_val=task.n_val,
        seed=args.seed,
        device=args.device,
        mirroring=False,
        out=args.work / name,
    )
    planned = open_planned_dataset(task.source, CONFIGURATION, plans)
    run_cross_modality(planned, arms, options, task.targets, names=task.names, parts=task.parts)


def started(name: str, work: Path) -> list[Job]:
    """The cells of a data set that has begun."""
    return stored_jobs(work / name) if (work / name / "comparison.json").is_file() else []


def unfinished(name: str, jobs: list[Job]) -> list[str]:
    """A line for each cell that has begun and is not finished."""
    return [f"- {name}: {job.name}: {state(job)}" for job in jobs if not job.finished]


def tables(name: str, work: Path) -> list[str]:
    """Title, means and differences of a data set, if cells of it are finished."""
    out = work / name
    if not (out / "means.csv").is_file():
        return []
    return [f"## {name}", mean_table(out / "means.csv"), effect_table(out / "effects.csv")]


def page(parts: list[str], missing: list[str]) -> bytes:
    """The text of tables.md: tables, and what was not run."""
    text = "\n\n".join([*parts, "## Not run", "\n".join(missing) or "- nothing is missing"])
    return f"{text}\n".encode()
