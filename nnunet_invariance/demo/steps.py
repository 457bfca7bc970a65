"""Steps that several demos use; the log contains each step and its time."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_invariance.common.csv_files import read_csv_rows
from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.protocols.checkpoints import warnings_of
from nnunet_invariance.evaluation.protocols.few_shot import run_few_shot
from nnunet_invariance.evaluation.protocols.protocol import ProtocolOptions
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.evaluation.runner.record import read_record
from nnunet_invariance.evaluation.runner.stock_commands import run_command
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.plans.copies import write_plans_copy

logger = logging.getLogger(__name__)

DATASET, CONFIGURATION, PLANS = "Dataset990_Demo", "3d_fullres", "nnUNetPlans_demo"
SEED = 0
N_VAL = 2


@dataclass
class Step:
    """A finished step: its commands and its wall time in seconds.

    >>> Step("planning", ["nnUNetv2_plan_and_preprocess -d 990"], 3.0).seconds
    3.0
    """

    name: str
    commands: list[str]
    seconds: float


class Demo:
    """Logs the current step, runs its commands, and records both.

    >>> Demo(Path("out"), total=4).comparison.as_posix()
    'out/comparison'
    """

    def __init__(self, out: Path, total: int) -> None:
        self.out = out
        self.total = total
        self.steps: list[Step] = []

    @property
    def raw(self) -> Path:
        """The raw folder of the demo's data set."""
        return self.out / "nnUNet_raw" / DATASET

    @property
    def comparison(self) -> Path:
        """Folder in which the trainers are compared."""
        return self.out / "comparison"

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Log and time one numbered step."""
        logger.info("[%d/%d] %s ...", len(self.steps) + 1, self.total, name)
        self.steps.append(Step(name, [], 0.0))
        start = time.monotonic()
        yield
        self.steps[-1].seconds = time.monotonic() - start
        logger.info("      %.0f s", self.steps[-1].seconds)

    def run(self, log: str, command: Sequence[str], on_poll: Callable[[], None] = lambda: None) -> None:
        """Run a command of this Python environment in the demo's folder, with output to ``logs/<log>.log``."""
        logger.info("      %s", " ".join(command))
        self.steps[-1].commands.append(" ".join(command))
        run_command(self.steps[-1].name, command, self.out / "logs" / f"{log}.log", self.out, {}, on_poll)


def plan(demo: Demo, iterations: int, **options: Any) -> None:
    """Plan and preprocess, then write a plans copy with a network that trains in a minute on two cores.

    The patch is 32^3, the batch size 2, and the stages have 8, 16, 32 and 64 features. ``options`` are options of the
    trainers.
    """
    with demo.step("planning and preprocessing with nnU-Net's own command"):
        identifier = str(int(DATASET[7:10]))
        demo.run(
            "plan", ["nnUNetv2_plan_and_preprocess", "-d", identifier, "-c", CONFIGURATION, "-npfp", "1", "-np", "1"]
        )
        stock = read_json(demo.out / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json")
        architecture = stock["configurations"][CONFIGURATION]["architecture"]
        architecture["arch_kwargs"].update(
            n_stages=4,
            features_per_stage=[8, 16, 32, 64],
            kernel_sizes=[[3, 3, 3]] * 4,
            strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
            n_conv_per_stage=[2] * 4,
            n_conv_per_stage_decoder=[2] * 3,
        )
        changes = {"patch_size": [32, 32, 32], "batch_size": 2, "architecture": architecture}
        block = {"iterations_per_epoch": iterations, "val_iterations_per_epoch": 2, "seed": SEED, **options}
        write_plans_copy(DATASET, "nnUNetPlans", PLANS, CONFIGURATION, block, changes)


def pretrain(demo: Demo, method: str, epochs: int, iterations: int, options: Sequence[str] = ()) -> None:
    """Run the pre-training command, with one line per epoch, and repeat the warnings of its log.

    ``options`` are further command-line arguments.
    """
    command = ["nnunet-invariance", "pretrain", method, DATASET, CONFIGURATION, "-p", PLANS, *options]
    command += ["-device", "cpu", "--epochs", str(epochs), "--iterations", str(iterations), "--seed", str(SEED)]
    metrics = pretraining_folder(demo, method) / "metrics.csv"
    shown = 0

    def on_poll() -> None:
        nonlocal shown
        rows = _read_rows(metrics)
        for row in rows[shown:]:
            logger.info("      epoch %d of %d, loss %.3f", shown + 1, epochs, float(row["loss"]))
            shown += 1

    demo.run("pretrain", command, on_poll)
    on_poll()
    for warning in warnings_of(pretraining_folder(demo, method)):
        logger.error("      %s", warning)


def _read_rows(metrics: Path) -> list[dict[str, str]]:
    """Rows of ``metrics.csv``, one per finished epoch."""
    if not metrics.is_file():
        return []
    return read_csv_rows(metrics, ["epoch"])


def pretraining_folder(demo: Demo, method: str) -> Path:
    """Folder of the pre-training's checkpoint and curves."""
    return demo.out / "nnUNet_results" / DATASET / "pretraining" / f"{method}__{PLANS}__{CONFIGURATION}"


def compare(demo: Demo, arms: Sequence[str], n_train: int, **protocol: Any) -> None:
    """Train the arms and compare them on the cases of labelsTs; ``protocol``: further arguments of `run_few_shot`."""
    test = sorted(p.name.split(".")[0] for p in (demo.raw / "labelsTs").iterdir())
    with demo.step(f"training {' and '.join(arms)}, predicting and scoring {len(test)} test cases"):
        run_few_shot(
            open_planned_dataset(DATASET, CONFIGURATION, PLANS),
            Selection(tuple(Arm(arm, arm) for arm in arms)),
            settings(demo, shots=[n_train - N_VAL]),
            test=test,
            **protocol,
        )
        remember_commands(demo)


def settings(demo: Demo, **others: Any) -> ProtocolOptions:
    """Options of the comparison in a demo."""
    return ProtocolOptions(n_val=N_VAL, seed=SEED, device="cpu", mirroring=False, out=demo.comparison, **others)


def remember_commands(demo: Demo) -> None:
    """Add the commands in a comparison's record to the current step."""
    jobs = read_record(demo.comparison / "comparison.json")["jobs"]
    demo.steps[-1].commands += [c for job in jobs.values() for step in job.values() for c in step["commands"]]
