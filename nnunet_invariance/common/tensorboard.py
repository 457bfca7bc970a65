"""Curves for TensorBoard, whose package is imported only when a writer is made."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_invariance.common.extras import install_command
from nnunet_invariance.errors import MissingPackageError

#: The folder of the event files in the folder of a run.
FOLDER = "tensorboard"


def require_tensorboard(wanted_by: str) -> None:
    """Check that TensorBoard is installed.

    Args:
        wanted_by: the flag or variable that asks for it.

    Raises:
        MissingPackageError: it is not; the message has the pip command.
    """
    try:
        importlib.import_module("tensorboard")
    except ModuleNotFoundError as error:
        msg = f"{wanted_by} needs the package tensorboard, which is not installed. Run "
        raise MissingPackageError(f"{msg}`{install_command('tensorboard')}`.") from error


class CurveWriter:
    """Appends values to event files; the first step that is written replaces this and later steps of earlier runs.

    A continued run therefore repeats no step in the picture, also if it was killed after its last checkpoint.

    >>> CurveWriter(Path("run")).folder.as_posix()
    'run/tensorboard'

    Args:
        folder: of the run; the event files are in its sub-folder ``tensorboard``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self._writer: Any = None

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write the values of one step to the disk."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """End the thread that writes."""
        if self._writer is not None:
            self._writer.close()
