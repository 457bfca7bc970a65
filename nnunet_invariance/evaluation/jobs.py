"""One training of a comparison: train, predict, score, each skipped when it is already done."""

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_invariance.evaluation.cases import LabelledCase
from nnunet_invariance.evaluation.scores import Score, score_case, write_csv
from nnunet_invariance.evaluation.splits import Subset
from nnunet_invariance.evaluation.stock import run_command
from nnunet_invariance.weights.locate import ENVIRONMENT_VARIABLE

_LENGTH = re.compile(r"_(\d+)epochs?$")
_EPOCH = re.compile(r": Epoch (\d+)\s*$", re.MULTILINE)
TAIL_BYTES = 20000


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a trainer by its name, and environment variables for its commands alone."""

    name: str
    trainer: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Length of the training as the trainer's name says it; nnU-Net's 1000 when it does not."""
        length = _LENGTH.search(self.trainer)
        return int(length[1]) if length else 1000


@dataclass(frozen=True)
class Setting:
    """What all jobs of a comparison share."""

    out: Path
    dataset: str
    dataset_json: dict[str, Any]
    plans_name: str
    configuration: str
    device: str
    mirroring: bool
    test_cases: Sequence[LabelledCase]


@dataclass(frozen=True)
class Job:
    """An arm on a subset; ``fold`` is the subset's place in splits_final.json."""

    arm: Arm
    subset: Subset
    fold: int
    setting: Setting

    @property
    def name(self) -> str:
        """Arm and subset, as in messages and in the record."""
        return f"{self.arm.name}/{self.subset.name}"

    @property
    def folder(self) -> Path:
        """Logs, predictions and scores of this job."""
        return self.setting.out / "arms" / self.arm.name / self.subset.name

    @property
    def results(self) -> Path:
        """The arm's nnUNet_results folder."""
        return self.setting.out / "arms" / self.arm.name / "nnUNet_results"

    @property
    def model(self) -> Path:
        """The fold folder in which nnU-Net leaves its checkpoints."""
        s = self.setting
        return self.results / s.dataset / f"{self.arm.trainer}__{s.plans_name}__{s.configuration}" / f"fold_{self.fold}"

    @property
    def scores(self) -> Path:
        """The file whose presence says that the job is done."""
        return self.folder / "scores.csv"

    def train_command(self) -> list[str]:
        """nnUNetv2_train; continues when there is a checkpoint to continue from."""
        s = self.setting
        command = ["nnUNetv2_train", s.dataset, s.configuration, str(self.fold), "-tr", self.arm.trainer]
        command += ["-p", s.plans_name, "-device", s.device]
        begun = any((self.model / f"checkpoint_{which}.pth").is_file() for which in ("latest", "best"))
        return [*command, "--c"] if begun else command

    def predict_command(self, target: Path) -> list[str]:
        """nnUNetv2_predict on the test images, with paths relative to the comparison's folder."""
        s = self.setting
        command = ["nnUNetv2_predict", "-i", "test_images", "-o", str(target.relative_to(s.out)), "-d", s.dataset]
        command += ["-c", s.configuration, "-p", s.plans_name, "-tr", self.arm.trainer, "-f", str(self.fold)]
        command += ["-device", s.device, "--disable_progress_bar"]
        return command if s.mirroring else [*command, "--disable_tta"]

    def prediction(self, case: str) -> Path:
        """Where the predicted segmentation of a test case stands."""
        return self.folder / "predictions" / f"{case}{self.setting.dataset_json['file_ending']}"


Record = Callable[[Job, str, list[str], float], None]


def run_job(job: Job, record: Record, on_poll: Callable[[], None], keep_open: Sequence[int] = ()) -> None:
    """Do what is left of a job; ``record(job, step, command, seconds)`` is called after each command.

    Raises:
        ComparisonError: a command failed or a prediction is missing.
    """
    setting = job.setting
    environment = {
        **job.arm.environment,
        "nnUNet_preprocessed": str(setting.out / "nnUNet_preprocessed"),
        "nnUNet_results": str(job.results),
    }
    if checkpoint := job.arm.environment.get(ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE)):
        environment[ENVIRONMENT_VARIABLE] = os.path.abspath(checkpoint)  # the commands run in another folder

    def run(step: str, command: list[str]) -> None:
        log = job.folder / f"{step}.log"
        seconds = run_command(f"{job.name}, {step}", command, log, setting.out, environment, on_poll, keep_open)
        record(job, step, command, seconds)

    if job.scores.is_file():
        return
    if not (job.model / "checkpoint_final.pth").is_file():
        run("train", job.train_command())
    if not (job.folder / "predictions").is_dir():
        # Under another name until all is there: a killed nnUNetv2_predict leaves truncated files.
        partial = job.folder / "predictions.partial"
        shutil.rmtree(partial, ignore_errors=True)
        run("predict", job.predict_command(partial))
        partial.rename(job.folder / "predictions")
    write_csv(job.scores, score_job(job), Score)


def score_job(job: Job) -> list[Score]:
    """Score every test case of a job, class by class."""
    setting, subset = job.setting, job.subset
    plans = setting.out / "nnUNet_preprocessed" / setting.dataset / f"{setting.plans_name}.json"
    rows = []
    for case in setting.test_cases:
        by_label = score_case(case.label, job.prediction(case.name), plans, setting.dataset_json)
        rows += [
            Score(subset.shots, subset.draw, job.arm.name, case.name, label, *row) for label, row in by_label.items()
        ]
    return rows


def epochs_done(job: Job) -> int:
    """Epochs that a job's training has finished, read from nnU-Net's own words in the log."""
    if (job.model / "checkpoint_final.pth").is_file():
        return job.arm.epochs
    log = job.folder / "train.log"
    if not log.is_file():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        found = _EPOCH.findall(file.read().decode(errors="replace"))
    return min(int(found[-1]), job.arm.epochs) if found else 0
