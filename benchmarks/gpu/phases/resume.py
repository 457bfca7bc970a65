"""A training and a pre-training that are interrupted and continued, against undisturbed ones."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from benchmarks.gpu.context import Context
from benchmarks.gpu.data import make_trainer, use_folders
from nnunet_invariance.pretraining import pretrain_without_dataset
from nnunet_invariance.pretraining.engine.loop import Loop
from nnunet_invariance.weights.checkpoint import read_metadata

OPTIONS = {"seed": 0, "aux_ramp": 0.0, "num_positions": 8, "val_iterations_per_epoch": 1, "augmentation": "device"}
SAVE = Loop.save


class Killed(Exception):
    """Stands for the end of a process."""


def run(context: Context) -> dict[str, Any]:
    """Losses of the last epoch of both runs, and the greatest relative difference; on a CPU it is 0."""
    use_folders(context)
    os.environ["nnUNet_compile"] = "f"
    losses = {"training": _training(context), "pretraining": _pretraining(context)}
    differences = [abs(found["continued"] / found["undisturbed"] - 1) for found in losses.values()]
    return {**losses, "relative_difference": max(differences)}


def _training(context: Context) -> dict[str, float]:
    losses = {}
    for name, interrupted in (("undisturbed", False), ("continued", True)):
        folder = context.work / "resume" / name
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["nnUNet_results"] = str(folder)
        trainer = _trainer(context)
        if interrupted:
            _kill_after_first_epoch(trainer)
            trainer = _trainer(context)
            trainer.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_latest.pth")))
        trainer.run_training()
        losses[name] = float(trainer.logger.get_value("train_losses", -1))
    return losses


def _pretraining(context: Context) -> dict[str, float]:
    losses = {}
    for name, interrupted in (("undisturbed", False), ("continued", True)):
        folder = context.work / "resume" / f"pretraining_{name}"
        shutil.rmtree(folder, ignore_errors=True)
        if interrupted:
            with mock.patch.object(Loop, "save", _save_and_die), contextlib.suppress(Killed):
                _pretrain(context, folder)
        final = _pretrain(context, folder, resume=interrupted)
        losses[name] = float(read_metadata(final)["progress"]["history"][-1]["loss"])
    return losses


def _pretrain(context: Context, folder: Path, resume: bool = False) -> Path:
    iterations = 20 if context.on_gpu else 1
    options = {"patch": context.size.small, "volume": max(32, context.size.small), "held_out": 0, "num_positions": 8}
    loop = {"epochs": 2, "iterations": iterations, "workers": 0, "seed": 0}
    device = context.device.type
    return pretrain_without_dataset(
        "anatomix", "plain4", folder, device=device, options=options, loop=loop, resume=resume
    )


def _save_and_die(loop: Loop, finished: bool = False) -> None:
    SAVE(loop, finished)
    raise Killed


def _trainer(context: Context) -> nnUNetTrainer:
    options = {**OPTIONS, "iterations_per_epoch": 10 if context.on_gpu else 1}
    trainer = make_trainer(context, "AliceTrainer_scratch_2epochs", 1, context.size.small, **options)
    trainer.logger.local_logger.plot_progress_png = lambda folder: None  # a picture takes longer than the training
    return trainer


def _kill_after_first_epoch(trainer: nnUNetTrainer) -> None:
    def start() -> None:
        if trainer.current_epoch == 1:
            raise Killed
        type(trainer).on_epoch_start(trainer)

    trainer.on_epoch_start = start
    try:
        trainer.run_training()
    except Killed:
        for loader in (trainer.dataloader_train, trainer.dataloader_val):
            if hasattr(loader, "_finish"):
                loader._finish()
