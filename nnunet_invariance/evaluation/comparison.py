"""The comparison runner: arms on subsets, through nnU-Net's own commands, in a tree of its own, scored and recorded.

A protocol decides what is compared and hands it over as a `Comparison`; it runs no command itself.
"""

import fcntl
import functools
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.cases import LabelledCase
from nnunet_invariance.evaluation.jobs import Arm, Job, Setting, run_job
from nnunet_invariance.evaluation.progress import progress
from nnunet_invariance.evaluation.record import Record
from nnunet_invariance.evaluation.scores import Score, Summary, format_summary, read_scores, summarize, write_csv
from nnunet_invariance.evaluation.splits import Subset
from nnunet_invariance.evaluation.tree import build_preprocessed, build_results, build_test_images
from nnunet_invariance.pretraining.planned_dataset import PlannedDataset
from nnunet_invariance.weights.atomic import atomic_write
from nnunet_invariance.weights.checkpoint import read_metadata
from nnunet_invariance.weights.locate import ENVIRONMENT_VARIABLE, FINAL

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """What a protocol has decided: every arm trains on every subset and is tested on the same cases.

    Attributes:
        checkpoints: files that an arm may start from; their checksums belong to the comparison.
        mirroring: test-time augmentation by mirroring, nnU-Net's default.
    """

    protocol: str
    planned: PlannedDataset
    arms: Sequence[Arm]
    subsets: Sequence[Subset]
    test: Sequence[LabelledCase]
    checkpoints: Sequence[Path]
    seed: int
    device: str
    mirroring: bool

    def describe(self) -> dict[str, Any]:
        """Everything that decides the result; a continued comparison must agree in all of it."""
        plans = self.planned.base / f"{self.planned.plans.plans_name}.json"
        return {
            "protocol": self.protocol,
            "dataset": self.planned.name,
            "plans": self.planned.plans.plans_name,
            "plans_sha256": hashlib.sha256(plans.read_bytes()).hexdigest(),
            "configuration": self.planned.configuration_name,
            "seed": self.seed,
            "mirroring": self.mirroring,
            "arms": {arm.name: {"trainer": arm.trainer, "environment": _without_paths(arm)} for arm in self.arms},
            "pretrainings": {_title(path): read_metadata(path)["sha256"] for path in self.checkpoints},
            "subsets": [{"name": s.name, "train": list(s.train), "val": list(s.val)} for s in self.subsets],
            "test": [case.name for case in self.test],
        }


def _without_paths(arm: Arm) -> list[str]:
    """The arm's variables without the path of its checkpoint, whose checksum is recorded instead."""
    return sorted(f"{name}={value}" for name, value in arm.environment.items() if name != ENVIRONMENT_VARIABLE)


def _title(checkpoint: Path) -> str:
    """The folder says what a finished pre-training is, the file's own name what any other checkpoint is."""
    return checkpoint.parent.name if checkpoint.name == FINAL else checkpoint.name


def run_comparison(comparison: Comparison, out: Path, baseline: str | None = None) -> Path:
    """Do what is left of a comparison in ``out`` and return it; ``baseline`` is the last arm when not given.

    Leaves scores.csv (a row per case and class), summary.csv and summary.txt (means and paired differences to the
    baseline), comparison.json (cases, commands, times, versions, machine) and a folder of logs, models and predictions
    for each arm.

    Raises:
        ComparisonError: the arms or the baseline make no comparison, ``out`` holds another one or is in use, or a
            command failed.
    """
    baseline = _check_arms(comparison.arms, baseline)
    planned = comparison.planned
    setting = Setting(
        out,
        planned.name,
        planned.dataset_json,
        planned.plans.plans_name,
        planned.configuration_name,
        comparison.device,
        comparison.mirroring,
        comparison.test,
    )
    described = comparison.describe()
    with _locked(out) as lock:
        record = Record(out / "comparison.json", described, comparison.device)
        build_preprocessed(out, planned, comparison.subsets)
        build_test_images(out, comparison.test)
        folds = list(enumerate(comparison.subsets))
        jobs = [Job(arm, subset, fold, setting) for fold, subset in folds for arm in comparison.arms]
        for arm in comparison.arms:
            pretraining = Path(os.environ["nnUNet_results"], planned.name, "pretraining")
            build_results(out / "arms" / arm.name / "nnUNet_results" / planned.name, pretraining)
        run_jobs(jobs, record, lock)
        summary = write_results(out, jobs, baseline)
    logger.info("%s", format_summary(summary))
    return out


def _check_arms(arms: Sequence[Arm], baseline: str | None) -> str:
    names = [arm.name for arm in arms]
    if not names or len(set(names)) < len(names):
        raise ComparisonError(f"Trainers {names}: expected at least one, and each only once.")
    if baseline is not None and baseline not in names:
        msg = f"The baseline {baseline!r} is none of the trainers {', '.join(names)}. Name one of them."
        raise ComparisonError(msg)
    return baseline or names[-1]


def run_jobs(jobs: Sequence[Job], record: Record, lock: int) -> None:
    """Run what is left of all jobs, one after the other."""
    with progress(jobs) as bar:
        for number, job in enumerate(jobs, 1):
            logger.info("%d/%d %s%s", number, len(jobs), job.name, ": done before" if job.scores.is_file() else "")
            run_job(job, record.keep, functools.partial(bar.update, job), [lock])
            bar.update(job)


def write_results(out: Path, jobs: Sequence[Job], baseline: str) -> list[Summary]:
    """Join the scores of all jobs, and summarize them."""
    scores = [score for job in jobs for score in read_scores(job.scores)]
    summary = summarize(scores, baseline)
    write_csv(out / "scores.csv", scores, Score)
    write_csv(out / "summary.csv", summary, Summary)
    atomic_write(out / "summary.txt", lambda file: file.write(format_summary(summary).encode()))
    return summary


@contextmanager
def _locked(out: Path) -> Iterator[int]:
    """Hold the folder's lock and give its file descriptor.

    The commands inherit it: after a kill of this process, a command that still runs keeps the folder locked.

    Raises:
        ComparisonError: another process holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"{out} is in use: a comparison, or a command that a killed one left, still runs. Wait or stop it."
            raise ComparisonError(msg) from error
        yield file.fileno()
