"""Log and draw curves of a training in addition to those in nnU-Net's progress.png."""

import math
from pathlib import Path

import matplotlib.style
import numpy as np
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.collectives import all_gather_objects
from nnunet_invariance.pretraining.engine.history import draw_history, loss_titles

#: Titles of the curves that are no auxiliary loss.
TITLES = {
    "train_losses": "training loss (lower is better)",
    "train_total": "total training loss (lower is better)",
    "val_losses": "validation loss (lower is better)",
    "aux_weight": "weight of the auxiliary losses",
    "encoder_lr": "learning rate of the encoder",
    "non_finite_steps": "steps that changed nothing (0 is best)",
}


def log_curves(logger: MetaLogger, values: dict[str, float], epoch: int) -> None:
    """Log the values of an epoch, averaged over the ranks, under keys that nnU-Net's logger does not have.

    Every rank must call this function. Earlier epochs without a value get NaN.
    """
    ranks = all_gather_objects(values)
    for name in values:
        logger.local_logger.my_fantastic_logging.setdefault(name, [math.nan] * epoch)
        logger.log(name, float(np.mean([rank[name] for rank in ranks])), epoch)


def draw_curves(logger: MetaLogger, names: list[str], path: Path) -> None:
    """Draw the curves of the given keys into an image file, one panel per key."""
    columns = [logger.get_value(name, None) for name in names]
    rows = zip(*columns, strict=True)
    history = [{"epoch": epoch, **dict(zip(names, row, strict=True))} for epoch, row in enumerate(rows, 1)]
    with matplotlib.style.context("default"):  # nnU-Net sets large fonts for the whole process
        figure = draw_history(history, (), loss_titles(n for n in names if n.startswith("train_")) | TITLES)
        atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=100))
