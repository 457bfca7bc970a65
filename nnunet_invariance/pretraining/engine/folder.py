"""The folder of a run: it is locked, an earlier run is moved aside, and the manifest and the log are written."""

import contextlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from logging.handlers import MemoryHandler
from pathlib import Path

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.common.lock import LOCK_FILE, lock_folder
from nnunet_invariance.errors import OutputError
from nnunet_invariance.nnunet.cases import Manifest

logger = logging.getLogger(__name__)

_held: set[int] = set()


def _close_in_workers() -> None:
    # A forked data worker inherits the lock, and would hold it for seconds after the main process was killed.
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_workers)


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Make the folder of a run and hold its lock.

    Raises:
        OutputError: the folder cannot be made.
        FolderLockedError: another run holds it; names its host and process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder)
        descriptor = lock.__enter__()
    except OSError as error:
        raise _cannot_be_made(folder, error) from error
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)
        lock.__exit__(None, None, None)


def _cannot_be_made(folder: Path, error: OSError) -> OutputError:
    msg = f"The output folder {folder} cannot be made ({error.strerror}). Check the path and its permissions."
    return OutputError(msg)


def start_folder(folder: Path, manifest: Manifest) -> None:
    """Move the files of an earlier run to ``FOLDER_<date>``, then write the manifest of the new run.

    The lock file stays, and the checkpoints are moved last, so that an interrupted move is completed by the next run.

    Raises:
        OutputError: a file cannot be moved or written.
    """
    if any(folder.glob("checkpoint_*")):
        moved = _unused(f"{folder}_{datetime.now():%Y%m%d_%H%M%S_%f}")
        try:
            moved.mkdir()
            for path in sorted(folder.iterdir(), key=lambda path: path.name.startswith("checkpoint_")):
                if path.name != LOCK_FILE:
                    path.rename(moved / path.name)
        except OSError as error:
            raise _cannot_be_made(moved, error) from error
        logger.warning("an earlier pre-training was moved to %s", moved)
    text = json.dumps(manifest.to_dict(), indent=1)
    atomic_write(folder / "manifest.json", lambda file: file.write(text.encode()))


def _unused(name: str) -> Path:
    """The name, or the first one with a number that does not exist: the clock may have been set back."""
    names = (Path(name if number == 0 else f"{name}_{number}") for number in itertools.count())
    return next(path for path in names if not path.exists())


@contextmanager
def package_log(group: DistributedContext) -> Iterator[Callable[[Path], None]]:
    """Collect the package's log until the yielded function names its file; other ranks than the first only warn.

    Raises:
        OutputError: the file cannot be written.
    """
    package = logging.getLogger("nnunet_invariance")
    if not group.is_main:
        package.setLevel(logging.WARNING)
    collected = MemoryHandler(capacity=1)  # hands everything on as soon as it has a target
    package.addHandler(collected)

    def write_to(file: Path) -> None:
        try:
            handler = logging.FileHandler(file)
        except OSError as error:
            msg = f"The log {file} cannot be written ({error.strerror}). Check the path and its permissions."
            raise OutputError(msg) from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        collected.setTarget(handler)
        collected.flush()

    try:
        yield write_to
    finally:
        package.removeHandler(collected)
        file_handler = collected.target
        collected.close()
        if file_handler:
            file_handler.close()
