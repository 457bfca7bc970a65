"""Log and draw curves of a training in addition to those in nnU-Net's progress.png."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.collectives import all_gather_objects
from nnunet_invariance.pretraining.engine.history import draw_history

#: Titles of the curves that are no auxiliary loss.
TITLES = {
    "train_losses": "training loss (lower is better)",
    "train_total": "total training loss (lower is better)",
    "val_losses": "validation loss (lower is better)",
    "aux_weight": "weight of the auxiliary losses",
    "encoder_lr": "learning rate of the encoder",
    "non_finite_steps": "steps that changed nothing (0 is best)",
}
#: Curves that say nothing as long as they are constant.
SCHEDULES = frozenset({"aux_weight", "encoder_lr", "non_finite_steps"})
LOSS = "train_"


def log_curves(logger: MetaLogger, values: dict[str, float], epoch: int) -> None:
    """Log the values of an epoch, averaged over the ranks, under keys that nnU-Net's logger does not have.

    Every rank must call this function. Earlier epochs without a value get NaN.
    """
    ranks = all_gather_objects(values)
    for name in values:
        logger.local_logger.my_fantastic_logging.setdefault(name, [math.nan] * epoch)
        logger.log(name, float(np.mean([rank[name] for rank in ranks])), epoch)


def draw_curves(logger: MetaLogger, names: list[str], path: Path) -> None:
    """Draw the curves of the given keys into an image file, one panel per key that :func:`matters`."""
    curves = {name: logger.get_value(name, None) for name in names}
    curves = {name: values for name, values in curves.items() if matters(name, values)}
    rows = zip(*curves.values(), strict=True)
    history = [{"epoch": epoch, **dict(zip(curves, row, strict=True))} for epoch, row in enumerate(rows, 1)]
    with matplotlib.style.context("default"):  # nnU-Net sets large fonts for the whole process
        figure = draw_history(history, (), {name: title(name) for name in curves})
        atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=100))


def matters(name: str, values: Sequence[float]) -> bool:
    """Whether a curve gets a panel: every loss, and what else has changed or is a skipped step.

    >>> matters("non_finite_steps", [0.0, 0.0]), matters("non_finite_steps", [1.0]), matters("train_losses", [0.5])
    (False, True, True)
    """
    return name not in SCHEDULES or len(set(values)) > 1 or (name == "non_finite_steps" and any(values))


def title(name: str) -> str:
    """Plain title of a curve, with its good direction.

    >>> title("train_info_nce")
    'auxiliary loss: info nce (lower is better)'
    """
    if name in TITLES or not name.startswith(LOSS):
        return TITLES.get(name, name.replace("_", " "))
    return f"auxiliary loss: {name.removeprefix(LOSS).replace('_', ' ')} (lower is better)"
