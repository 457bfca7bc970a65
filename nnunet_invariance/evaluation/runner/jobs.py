"""One cell of a comparison: train, predict and score; finished steps are skipped."""

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nnunet_invariance.common.csv_files import write_csv
from nnunet_invariance.common.lock import lock_folder
from nnunet_invariance.errors import DamagedFileError
from nnunet_invariance.evaluation.protocols.cases import LabelledCase
from nnunet_invariance.evaluation.protocols.splits import Subset
from nnunet_invariance.evaluation.runner.record import recorded
from nnunet_invariance.evaluation.runner.stock_commands import run_command
from nnunet_invariance.evaluation.scoring.scores import Score, read_scores, score_case
from nnunet_invariance.registry import LENGTH_SUFFIX
from nnunet_invariance.weights.locate import ENVIRONMENT_VARIABLE

_EPOCH = re.compile(r": Epoch (\d+)\s*$", re.MULTILINE)
TAIL_BYTES = 20000
#: Folders of a comparison with links to the test cases.
TEST_IMAGES, TEST_LABELS = "test_images", "test_labels"


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a trainer by its name, and environment variables for its commands.

    >>> Arm("AliceTrainer_60epochs", "AliceTrainer_60epochs").epochs
    60

    ``plans`` names a copy of the comparison's plans with other options, for the same preprocessed cases; None: the
    comparison's own plans.
    """

    name: str
    trainer: str
    environment: Mapping[str, str] = field(default_factory=dict)
    plans: str | None = None

    @property
    def epochs(self) -> int:
        """Number of epochs in the trainer's name, or nnU-Net's 1000 without one."""
        length = LENGTH_SUFFIX.search(self.trainer)
        return int(length[1]) if length else 1000


@dataclass(frozen=True)
class CaseSet:
    """A named set of test cases that every trained network predicts; the name is "" for a single set.

    >>> CaseSet("T1", []).within(Path("predictions")).as_posix()
    'predictions/T1'

    Attributes:
        classes: the classes that are scored; None: all.
        values: value in the label files -> value in the training's numbering; None if both are the same.
    """

    name: str
    cases: Sequence[LabelledCase]
    classes: Sequence[str] | None = None
    values: Mapping[int, int] | None = None

    def within(self, folder: Path) -> Path:
        """The subfolder of this test set."""
        return folder / self.name if self.name else folder


@dataclass(frozen=True)
class Setting:
    """What all jobs of a comparison share; ``tolerance`` is that of NSD in mm, None computes Dice only.

    >>> Setting(Path("out"), "Dataset001_A", {}, "nnUNetPlans", "3d_fullres", "cpu", True, tests=[]).tolerance is None
    True
    """

    out: Path
    dataset: str
    dataset_json: dict[str, Any]
    plans_name: str
    configuration: str
    device: str
    mirroring: bool
    tests: Sequence[CaseSet]
    tolerance: float | None = None


@dataclass(frozen=True)
class Job:
    """An arm on a subset; ``fold`` is the index of the subset in splits_final.json.

    >>> setting = Setting(Path("out"), "Dataset001_A", {}, "nnUNetPlans", "3d_fullres", "cpu", True, tests=[])
    >>> job = Job(Arm("A", "nnUNetTrainer"), Subset(5, 0, ("a",), ("b",)), 0, setting)
    >>> job.name, job.scores.as_posix()
    ('A/shots5_draw0', 'out/arms/A/shots5_draw0/scores.csv')
    """

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
    def plans(self) -> str:
        """Name of the plans that this job trains with."""
        return self.arm.plans or self.setting.plans_name

    @property
    def model(self) -> Path:
        """The fold folder with nnU-Net's checkpoints."""
        s = self.setting
        return self.results / s.dataset / f"{self.arm.trainer}__{self.plans}__{s.configuration}" / f"fold_{self.fold}"

    @property
    def scores(self) -> Path:
        """Scores of the test cases; written last."""
        return self.folder / "scores.csv"

    @property
    def finished(self) -> bool:
        """Whether the scores are there, with a row for every test case and class.

        A damaged or incomplete file does not count: the job then scores its predictions again.
        """
        if not self.scores.is_file() or not self.scores.read_bytes().endswith(b"\n"):
            return False
        try:
            found = {(score.condition, score.case, score.label) for score in read_scores(self.scores)}
        except DamagedFileError:
            return False
        foreground = [name for name in self.setting.dataset_json["labels"] if name not in ("background", "ignore")]
        expected = {
            (self.condition(test), case.name, label)
            for test in self.setting.tests
            for case in filter(self.subset.tests, test.cases)
            for label in (foreground if test.classes is None else test.classes)
        }
        return expected <= found

    @property
    def record(self) -> Path:
        """Commands and times of this job."""
        return self.folder / "record.json"

    def train_command(self) -> list[str]:
        """The nnUNetv2_train command; it continues if there is a checkpoint."""
        s = self.setting
        command = ["nnUNetv2_train", s.dataset, s.configuration, str(self.fold), "-tr", self.arm.trainer]
        command += ["-p", self.plans, "-device", s.device]
        begun = any((self.model / f"checkpoint_{which}.pth").is_file() for which in ("latest", "best"))
        return [*command, "--c"] if begun else command

    def predict_command(self, test: CaseSet, target: Path) -> list[str]:
        """The nnUNetv2_predict command for a test set, with paths relative to the comparison's folder."""
        s = self.setting
        images = str(test.within(Path(TEST_IMAGES)))
        command = ["nnUNetv2_predict", "-i", images, "-o", str(target.relative_to(s.out)), "-d", s.dataset]
        command += ["-c", s.configuration, "-p", self.plans, "-tr", self.arm.trainer, "-f", str(self.fold)]
        command += ["-device", s.device, "--disable_progress_bar"]
        return command if s.mirroring else [*command, "--disable_tta"]

    def predictions(self, test: CaseSet) -> Path:
        """Folder of the predicted segmentations of a test set."""
        return test.within(self.folder / "predictions")

    def condition(self, test: CaseSet) -> str:
        """Name of the condition of this job's scores on a test set."""
        return f"{self.subset.condition}, {test.name}" if test.name else self.subset.condition


def run_job(
    job: Job,
    on_poll: Callable[[], None] = lambda: None,
    keep_open: Sequence[int] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run the missing steps of a job and record each command; ``environment`` is added to the arm's own.

    Raises:
        ComparisonError: a command failed, or a prediction is missing.
    """
    if job.finished:
        return
    with lock_folder(job.folder) as lock:
        _run(job, on_poll, [*keep_open, lock], {**job.arm.environment, **environment})
        write_csv(job.scores, score_job(job), Score)


def _run(job: Job, on_poll: Callable[[], None], keep_open: Sequence[int], environment: dict[str, str]) -> None:
    """Run the missing commands of a job."""
    setting, ending = job.setting, job.setting.dataset_json["file_ending"]
    environment["nnUNet_preprocessed"] = str(setting.out / "nnUNet_preprocessed")
    environment["nnUNet_results"] = str(job.results)
    if checkpoint := environment.get(ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE)):
        environment[ENVIRONMENT_VARIABLE] = os.path.abspath(checkpoint)  # the commands run in another folder

    def run(step: str, command: list[str]) -> None:
        log = job.folder / f"{step}.log"
        with recorded(job.record, step, command, setting.device):
            run_command(f"{job.name}, {step}", command, log, setting.out, environment, on_poll, keep_open)

    if not (job.model / "checkpoint_final.pth").is_file():
        run("train", job.train_command())
    for test in setting.tests:
        target = job.predictions(test)
        if not all((target / f"{case.name}{ending}").is_file() for case in test.cases):
            # Renamed when complete, because a killed nnUNetv2_predict leaves truncated files.
            partial = target.with_name(f"{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            run("predict", job.predict_command(test, partial))
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)


def score_job(job: Job) -> list[Score]:
    """Score every test case of a job's subset, class by class."""
    setting = job.setting
    plans = setting.out / "nnUNet_preprocessed" / setting.dataset / f"{setting.plans_name}.json"
    ending = setting.dataset_json["file_ending"]
    rows = []
    for test in setting.tests:
        for case in filter(job.subset.tests, test.cases):
            prediction = job.predictions(test) / f"{case.name}{ending}"
            by_label = score_case(case.label, prediction, plans, setting.dataset_json, setting.tolerance)
            condition, draw, arm = job.condition(test), job.subset.draw, job.arm.name
            scored = by_label if test.classes is None else test.classes
            rows += [Score(condition, draw, arm, case.name, label, **by_label[label]._asdict()) for label in scored]
    return rows


def epochs_done(job: Job) -> int:
    """Number of epochs that a job's training has finished, read from nnU-Net's log."""
    if (job.model / "checkpoint_final.pth").is_file():
        return job.arm.epochs
    log = job.folder / "train.log"
    if not log.is_file():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        found = _EPOCH.findall(file.read().decode(errors="replace"))
    return min(int(found[-1]), job.arm.epochs) if found else 0
