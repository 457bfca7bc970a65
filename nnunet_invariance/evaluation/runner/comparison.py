"""The comparison runner: trains and tests every arm on every subset through nnU-Net's own commands, in its own folder.

A protocol decides what is compared and hands it over as a `Comparison`; it runs no command itself.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_invariance.common.hashing import sha256_of_file
from nnunet_invariance.common.lock import lock_folder
from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.protocols.checkpoints import describe_checkpoint, title
from nnunet_invariance.evaluation.protocols.splits import Subset
from nnunet_invariance.evaluation.protocols.unlabelled import Unlabelled
from nnunet_invariance.evaluation.report.page import write_report
from nnunet_invariance.evaluation.report.results import SUMMARY
from nnunet_invariance.evaluation.runner.jobs import Arm, CaseSet, Job, Setting
from nnunet_invariance.evaluation.runner.record import open_record
from nnunet_invariance.evaluation.runner.running import run_jobs, submit_slurm
from nnunet_invariance.evaluation.runner.stored import (
    RECORD,
    describe_subset,
    describe_test,
    stored_subsets,
    stored_tests,
)
from nnunet_invariance.evaluation.runner.tree import build_preprocessed, build_results, build_tests, require_same_folds
from nnunet_invariance.evaluation.statistics.effects import Contrast
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.weights.locate import ENVIRONMENT_VARIABLE, FINAL

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """A comparison: every arm trains on every subset and is tested on the same test sets.

    Attributes:
        tests: test sets; several if a network is tested under several conditions, with different names.
        checkpoints: the file that an arm starts from, by arm; their checksums are part of the description.
        mirroring: test-time augmentation by mirroring, nnU-Net's default.
        tolerance: of NSD, in mm; None computes Dice alone.
        contrasts: pairs of arms that are compared; empty: every arm with the last one.
        left_out: requested trainers that do not apply, with the reason.
        transductive: names of test cases that a pre-training, or learning without labels, has seen.
        unlabelled: what arms learn from without labels, by arm.
        command: the command line that runs it, for the record; empty if it was started in Python.

    >>> arms = [Arm("A", "nnUNetTrainer")]
    >>> Comparison("few-shot", planned, arms, subsets, tests, {}, 0, "cuda", mirroring=True)  # doctest: +SKIP
    """

    protocol: str
    planned: PlannedDataset
    arms: Sequence[Arm]
    subsets: Sequence[Subset]
    tests: Sequence[CaseSet]
    checkpoints: Mapping[str, Path]
    seed: int
    device: str
    mirroring: bool
    tolerance: float | None = None
    contrasts: Sequence[Contrast] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    transductive: Collection[str] = ()
    unlabelled: Mapping[str, Unlabelled] = field(default_factory=dict)
    command: str = ""

    def describe(self) -> dict[str, Any]:
        """Everything that affects the result; a call that continues a comparison must not contradict it."""
        contrasts = self.contrasts or [Contrast(a.name, self.arms[-1].name, self.arms[-1].name) for a in self.arms[:-1]]
        return {
            "protocol": self.protocol,
            "dataset": self.planned.name,
            "plans": self.planned.plans.plans_name,
            "plans_sha256": sha256_of_file(self.planned.base / f"{self.planned.plans.plans_name}.json"),
            "configuration": self.planned.configuration_name,
            "seed": self.seed,
            "mirroring": self.mirroring,
            "tolerance": self.tolerance,
            "arms": {arm.name: self._describe_arm(arm) for arm in self.arms},
            "pretrainings": {title(path): describe_checkpoint(path) for path in self.checkpoints.values()},
            "starts_from": {arm: title(path) for arm, path in self.checkpoints.items()},
            "contrasts": [{"name": f"{c.arm} - {c.reference}", **asdict(c)} for c in contrasts],
            "left_out": dict(self.left_out),
            "transductive": dict.fromkeys(sorted(self.transductive), True),
            "subsets": [describe_subset(subset) for subset in self.subsets],
            "tests": [describe_test(test) for test in self.tests],
            # Finished trainings are not tested again, so no test set may be added later.
            **({"unlabelled": {a: u.describe() for a, u in self.unlabelled.items()}} if self.unlabelled else {}),
            **({"test_names": [test.name for test in self.tests]} if any(test.name for test in self.tests) else {}),
        }

    def _describe_arm(self, arm: Arm) -> dict[str, Any]:
        """The trainer, its environment variables and, if it has its own, its plans."""
        described = {"trainer": arm.trainer, "environment": _without_paths(arm)}
        if arm.plans:
            described["plans"] = arm.plans
            described["plans_sha256"] = sha256_of_file(self.planned.base / f"{arm.plans}.json")
        return described


def _without_paths(arm: Arm) -> list[str]:
    """The arm's variables without the path of its checkpoint, whose checksum is recorded instead."""
    return sorted(f"{name}={value}" for name, value in arm.environment.items() if name != ENVIRONMENT_VARIABLE)


def run_comparison(
    comparison: Comparison,
    out: Path,
    *,
    parallel: int = 1,
    devices: Sequence[str] = (),
    slurm: Mapping[str, str | int] | None = None,
) -> Path:
    """Run the missing cells of a comparison in ``out`` and return ``out``.

    Leaves what ``write_report`` writes, comparison.json (cases, commands, times, versions, machine) and a folder of
    logs, models and predictions for each arm. A training that fails does not stop the others.

    Raises:
        ComparisonError: the arms make no comparison, ``out`` contains another one or is in use, or a command failed.
    """
    _check_arms(comparison.arms)
    with lock_folder(out) as lock:
        jobs = prepare(comparison, out)
        if slurm is not None:
            tasks = submit_slurm(jobs, out / "slurm", parallel, dict(slurm))
            logger.info("submitted %s to Slurm: %s", counted(len(tasks), "training"), ", ".join(tasks))
            return out
        try:
            run_jobs(jobs, [lock], parallel, devices)
        finally:
            if any(job.finished for job in jobs):
                write_report(out)
    logger.info("%s", (out / SUMMARY).read_text())
    return out


def prepare(comparison: Comparison, out: Path) -> list[Job]:
    """Write the record and the folders of a comparison; returns its jobs in the order in which they run."""
    planned = comparison.planned
    if not (out / RECORD).is_file():
        require_same_folds(out, planned.name, comparison.subsets)
    described = open_record(out / RECORD, comparison.describe(), comparison.device, comparison.command)
    subsets = stored_subsets(described)  # including those of earlier calls, in their order
    without_labels = {case for unlabelled in comparison.unlabelled.values() for case in unlabelled.cases}
    build_preprocessed(out, planned, subsets, [arm.plans for arm in comparison.arms if arm.plans], without_labels)
    ending = planned.dataset_json["file_ending"]
    build_tests(out, comparison.tests, ending, planned.plans.image_reader_writer_class())
    setting = Setting(
        out,
        planned.name,
        planned.dataset_json,
        planned.plans.plans_name,
        planned.configuration_name,
        comparison.device,
        comparison.mirroring,
        stored_tests(out, described, ending),
        comparison.tolerance,
    )
    for arm in comparison.arms:
        start = comparison.checkpoints.get(arm.name)
        pretrainings = [start.parent] if start and start.name == FINAL else []
        build_results(out / "arms" / arm.name / "nnUNet_results" / planned.name, pretrainings)
    folds = {subset.name: fold for fold, subset in enumerate(subsets)}
    return [Job(arm, s, folds[s.name], setting) for s in comparison.subsets for arm in comparison.arms]


def _check_arms(arms: Sequence[Arm]) -> None:
    names = [arm.name for arm in arms]
    if not names or len(set(names)) < len(names):
        raise ComparisonError(f"Trainers {names}: expected at least one, and each only once.")
