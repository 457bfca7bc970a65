"""A comparison read from its folder: its cells, the state of each, and the scores of the finished ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_invariance.common.csv_files import write_csv
from nnunet_invariance.common.json_files import write_json
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.protocols.cases import LabelledCase
from nnunet_invariance.evaluation.protocols.splits import Subset
from nnunet_invariance.evaluation.runner.jobs import TEST_IMAGES, TEST_LABELS, Arm, CaseSet, Job, Setting, epochs_done
from nnunet_invariance.evaluation.runner.record import read_commands, read_record
from nnunet_invariance.evaluation.scoring.scores import Score, read_scores
from nnunet_invariance.nnunet.planned_dataset import read_dataset_json

RECORD = "comparison.json"


def stored_jobs(out: Path) -> list[Job]:
    """Every cell of a comparison, arms within subsets.

    Raises:
        ComparisonError: the folder contains no comparison.
    """
    if not (out / RECORD).is_file():
        msg = (
            f"{out} contains no {RECORD}, so it is no folder of a comparison. Give the folder that `evaluate` printed."
        )
        raise ComparisonError(msg)
    described = read_record(out / RECORD)["comparison"]
    dataset = read_dataset_json(out / "nnUNet_preprocessed" / described["dataset"] / "dataset.json")
    setting = Setting(
        out.resolve(),
        described["dataset"],
        dataset,
        described["plans"],
        described["configuration"],
        "",
        described["mirroring"],
        stored_tests(out.resolve(), described, dataset["file_ending"]),
        described.get("tolerance"),
    )
    arms = [Arm(name, arm["trainer"], plans=arm.get("plans")) for name, arm in described["arms"].items()]
    subsets = stored_subsets(described)
    return [Job(arm, subset, fold, setting) for fold, subset in enumerate(subsets) for arm in arms]


def stored_subsets(described: Mapping[str, Any]) -> list[Subset]:
    """The subsets of a description; their indices are nnU-Net's folds."""
    return [
        Subset(s["shots"], s["draw"], tuple(s["train"]), tuple(s["val"]), s.get("part"), _names(s.get("test")))
        for s in described["subsets"]
    ]


def recorded_test_cases(out: Path) -> set[str]:
    """Names of all test cases of the comparison in a folder; empty if there is none."""
    if not (out / RECORD).is_file():
        return set()
    return {case for test in read_record(out / RECORD)["comparison"]["tests"] for case in test["cases"]}


def _names(stored: list[str] | None) -> tuple[str, ...] | None:
    return None if stored is None else tuple(stored)


def describe_subset(s: Subset) -> dict[str, Any]:
    """The entry that :func:`stored_subsets` reads."""
    described = {"name": s.name, "shots": s.shots, "draw": s.draw, "train": list(s.train), "val": list(s.val)}
    return described if s.part is None else {**described, "part": s.part, "test": list(s.test or ())}


def describe_test(test: CaseSet) -> dict[str, Any]:
    """The entry that :func:`stored_tests` reads, and how label values were changed."""
    described: dict[str, Any] = {"name": test.name, "cases": [case.name for case in test.cases]}
    if test.classes is not None:
        described["classes"] = list(test.classes)
    if test.values is not None:
        described["values"] = {str(value): new for value, new in test.values.items()}
    return described


def stored_tests(out: Path, described: Mapping[str, Any], ending: str) -> list[CaseSet]:
    """The test sets of a description, with their files in the comparison's folder."""
    return [_case_set(out, test, ending) for test in described["tests"]]


def _case_set(out: Path, test: Mapping[str, Any], ending: str) -> CaseSet:
    empty = CaseSet(test["name"], [])
    images, labels = empty.within(out / TEST_IMAGES), empty.within(out / TEST_LABELS)
    cases = [
        LabelledCase(
            name, tuple(sorted(images.glob(f"{name}_[0-9][0-9][0-9][0-9]{ending}"))), labels / f"{name}{ending}"
        )
        for name in test["cases"]
    ]
    return CaseSet(test["name"], cases, test.get("classes"))


def state(job: Job) -> str:
    """The state of a cell, as text."""
    if job.finished:
        return "finished"
    if job.scores.is_file():
        return "trained, scores.csv is damaged or incomplete: repeat the command to score again"
    if (job.model / "checkpoint_final.pth").is_file():
        return "trained, not scored"
    epochs = epochs_done(job)
    begun = job.folder.joinpath("train.log").is_file()
    return f"stopped after {epochs} of {job.arm.epochs} epochs" if begun else "not run"


def write_scores(out: Path, jobs: Sequence[Job]) -> list[Score]:
    """Join the scores and the records of all finished jobs into the comparison's folder; returns the scores."""
    scores = [score for job in jobs if job.finished for score in read_scores(job.scores)]
    write_csv(out / "scores.csv", scores, Score)
    record = read_record(out / RECORD)
    record["jobs"] |= {job.name: found for job in jobs if (found := read_commands(job.record))}
    write_json(out / RECORD, record)
    return scores
