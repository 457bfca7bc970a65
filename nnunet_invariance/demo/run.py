"""The steps of the demo, one after the other, each said aloud with the time it takes."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_invariance.demo.data import write_dataset
from nnunet_invariance.demo.page import write_page
from nnunet_invariance.errors import OutputError
from nnunet_invariance.evaluation.arms import Selection
from nnunet_invariance.evaluation.few_shot import few_shot
from nnunet_invariance.evaluation.jobs import Arm
from nnunet_invariance.evaluation.stock import run_command
from nnunet_invariance.plans.copies import write_plans_copy
from nnunet_invariance.pretraining.planned_dataset import open_planned_dataset

logger = logging.getLogger(__name__)

DATASET, CONFIGURATION, PLANS = "Dataset990_Demo", "3d_fullres", "nnUNetPlans_demo"
SEED = 0
N_TRAIN, N_TEST, N_UNLABELLED = 10, 3, 8
N_VAL = 2
PRETRAINING_EPOCHS, PRETRAINING_ITERATIONS = 5, 30
EPOCHS, ITERATIONS, VAL_ITERATIONS = 8, 16, 2
OWN_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "unlabelled", "comparison", "logs")


@dataclass
class Step:
    """A step that is done: what was run, and its wall time in seconds."""

    name: str
    commands: list[str]
    seconds: float


def run_demo(method: str, out: Path) -> Path:
    """Make data, plan, pre-train, train with and without, predict, score; returns the page. An old demo is replaced.

    Raises:
        OutputError: ``out`` is a folder that no demo has made.
        ComparisonError: a command failed; names its log.
    """
    out = out.resolve()
    _empty(out)
    trainer = {"alice": "AliceTrainer"}[method]
    arms = [f"{trainer}_{EPOCHS}epochs", f"{trainer}_scratch_{EPOCHS}epochs"]
    with _environment(out):
        demo = Demo(out, total=5)
        with demo.step("making a small data set: the same shapes, another contrast in every case"):
            raw = out / "nnUNet_raw" / DATASET
            write_dataset(raw, out / "unlabelled", N_TRAIN, N_TEST, N_UNLABELLED, SEED)
        with demo.step("planning and preprocessing with nnU-Net's own command"):
            demo.run(
                "plan", ["nnUNetv2_plan_and_preprocess", "-d", "990", "-c", CONFIGURATION, "-npfp", "1", "-np", "1"]
            )
            _write_small_plans(out)
        with demo.step(f"pre-training {method} on {N_TRAIN + N_UNLABELLED} images, without labels"):
            pretrain(demo, method)
        with demo.step(f"training {' and '.join(arms)}, predicting and scoring {N_TEST} test cases"):
            compare(demo, arms)
        with demo.step("drawing the page"):
            page = write_page(out, method, arms, demo.steps)
    minutes, seconds = divmod(round(sum(step.seconds for step in demo.steps)), 60)
    logger.info("done in %d min %d s: %s", minutes, seconds, page)
    return page


class Demo:
    """Says which step runs, runs its commands, and remembers both."""

    def __init__(self, out: Path, total: int) -> None:
        self.out = out
        self.total = total
        self.steps: list[Step] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One numbered step."""
        logger.info("[%d/%d] %s ...", len(self.steps) + 1, self.total, name)
        self.steps.append(Step(name, [], 0.0))
        start = time.monotonic()
        yield
        self.steps[-1].seconds = time.monotonic() - start
        logger.info("      %.0f s", self.steps[-1].seconds)

    def run(self, log: str, command: Sequence[str], on_poll: Callable[[], None] = lambda: None) -> None:
        """Run a command of this environment in the demo's folder."""
        logger.info("      %s", " ".join(command))
        self.steps[-1].commands.append(" ".join(command))
        run_command(self.steps[-1].name, command, self.out / "logs" / f"{log}.log", self.out, {}, on_poll)


def pretrain(demo: Demo, method: str) -> None:
    """The pre-training command, with a line an epoch."""
    command = ["nnunet-invariance", "pretrain", method, DATASET, CONFIGURATION, "-p", PLANS, "--images", "unlabelled"]
    command += ["-device", "cpu", "--epochs", str(PRETRAINING_EPOCHS), "--iterations", str(PRETRAINING_ITERATIONS)]
    command += ["--seed", str(SEED)]
    folder = pretraining_folder(demo.out, method)
    said = 0

    def on_poll() -> None:
        nonlocal said
        metrics = folder / "metrics.csv"
        epochs = len(metrics.read_text().splitlines()) - 1 if metrics.is_file() else 0
        if epochs > said:
            said = epochs
            logger.info("      epoch %d of %d", epochs, PRETRAINING_EPOCHS)

    demo.run("pretrain", command, on_poll)


def pretraining_folder(out: Path, method: str) -> Path:
    """Where the pre-training leaves its checkpoint and curves."""
    return out / "nnUNet_results" / DATASET / "pretraining" / f"{method}__{PLANS}__{CONFIGURATION}"


def compare(demo: Demo, arms: Sequence[str]) -> None:
    """The comparison runner; its record tells which stock commands it ran."""
    test = sorted(p.name.split(".")[0] for p in (demo.out / "nnUNet_raw" / DATASET / "labelsTs").iterdir())
    comparison = few_shot(
        open_planned_dataset(DATASET, CONFIGURATION, PLANS),
        Selection(tuple(Arm(arm, arm) for arm in arms)),
        shots=[N_TRAIN - N_VAL],
        test=test,
        n_val=N_VAL,
        seed=SEED,
        device="cpu",
        mirroring=False,
        out=demo.out / "comparison",
    )
    jobs: dict[str, Any] = json.loads((comparison / "comparison.json").read_text())["jobs"]
    demo.steps[-1].commands += [c for job in jobs.values() for step in job.values() for c in step["commands"]]


def _write_small_plans(out: Path) -> None:
    """A plans copy of a size that two cores train in a minute: patch 32^3, stages of 8, 16, 32 and 64 features."""
    stock = json.loads((out / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json").read_text())
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
    block = {"iterations_per_epoch": ITERATIONS, "val_iterations_per_epoch": VAL_ITERATIONS, "seed": SEED}
    write_plans_copy(DATASET, "nnUNetPlans", PLANS, CONFIGURATION, block, changes)


def _empty(out: Path) -> None:
    """Make the folder, or remove what an earlier demo left in it and nothing else."""
    found = {p.name for p in out.iterdir()} if out.is_dir() else set()
    if strangers := found - {*OWN_FOLDERS, "index.html"}:
        msg = f"{out} holds {', '.join(sorted(strangers)[:3])}, which no demo has made. Give a new folder with --out."
        raise OutputError(msg)
    for name in found:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)


@contextmanager
def _environment(out: Path) -> Iterator[None]:
    """nnU-Net's three variables point into the demo, and it starts as few processes as it can."""
    values: Mapping[str, str] = {
        **{name: str(out / name) for name in OWN_FOLDERS[:3]},
        # Each process that nnU-Net starts costs as much as half of a training here.
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "1",
        "nnUNet_npp": "0",
        "nnUNet_nps": "0",
        # Waiting threads sleep: spinning ones slow everything down tenfold once the cores have other work, too.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
