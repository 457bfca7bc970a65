"""TensorBoard as one of the loggers of nnU-Net's trainers, beside Weights & Biases (``nnUNet_wandb_enabled``)."""

import os
from pathlib import Path
from typing import Any

from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunet_invariance.common.tensorboard import CurveWriter, require_tensorboard

#: Environment variable that asks for the curves; "" and "0" are no.
VARIABLE = "NNUNET_INVARIANCE_TENSORBOARD"


class TensorBoardLogger:
    """The interface that nnU-Net's MetaLogger expects of a logger.

    >>> TensorBoardLogger(Path("fold_0")).curves.folder.name
    'tensorboard'
    """

    def __init__(self, folder: Path) -> None:
        self.curves = CurveWriter(folder)

    def update_config(self, config: dict[str, Any]) -> None:
        """Nothing: the configuration is in nnU-Net's debug.json."""

    def log(self, key: str, value: Any, step: int) -> None:
        """Write a value of an epoch; a time of day is no curve."""
        if not key.endswith("_timestamps"):
            self.curves.write({key: float(value)}, step)

    def log_summary(self, key: str, value: Any) -> None:
        """Nothing: the scores of the final validation are in nnU-Net's summary.json."""


def add_tensorboard(logger: MetaLogger, folder: Path, rank: int) -> None:
    """Add TensorBoard to the loggers of the first rank if :data:`VARIABLE` is set.

    Raises:
        MissingPackageError: the package tensorboard is not installed.
    """
    if rank == 0 and os.environ.get(VARIABLE, "0") not in ("", "0"):
        require_tensorboard(f"{VARIABLE}={os.environ[VARIABLE]}")
        logger.loggers.append(TensorBoardLogger(folder))
