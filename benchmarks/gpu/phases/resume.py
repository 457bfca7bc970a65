"""A training that is interrupted after its first epoch and continued, against an undisturbed one."""

import os
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from benchmarks.gpu.context import Context
from benchmarks.gpu.data import make_trainer, use_folders

OPTIONS = {"seed": 0, "aux_ramp": 0.0, "num_positions": 8, "val_iterations_per_epoch": 1, "augmentation": "device"}


class Killed(Exception):
    """Stands for the end of a process."""


def run(context: Context) -> dict[str, Any]:
    """Loss of the last epoch of both runs, and the relative difference; on a CPU it is 0."""
    use_folders(context)
    os.environ["nnUNet_compile"] = "f"
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
    return {**losses, "relative_difference": abs(losses["continued"] / losses["undisturbed"] - 1)}


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
