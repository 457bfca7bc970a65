"""Folders that only one process works in."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_invariance.errors import ComparisonError


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder's lock and give its file descriptor; the folder is made.

    Commands inherit the descriptor: after a kill of this process, one that still runs keeps the folder locked.

    Raises:
        ComparisonError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"{folder} is in use: a comparison, or a command that a killed one left, still runs. Wait or stop it."
            raise ComparisonError(msg) from error
        yield file.fileno()
