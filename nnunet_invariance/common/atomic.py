"""Writing a file so that a reader sees the old one or the new one, never a part of either."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from nnunet_invariance.errors import OutputError

_REMEDIES = {
    errno.ENOSPC: "Free some space on that disk or choose another place.",
    errno.EDQUOT: "Your disk quota is used up: free some space or choose another place.",
    errno.EFBIG: "The file is larger than this process may write: raise the limit (ulimit -f) or choose another disk.",
    errno.EACCES: "Make the folder writable for this user or choose another place.",
    errno.EPERM: "Make the folder writable for this user or choose another place.",
    errno.EROFS: "That disk is mounted read-only: choose another place.",
    errno.ENOTDIR: "A file stands where a folder is needed: move it away or choose another place.",
    errno.EEXIST: "A file stands where a folder is needed: move it away or choose another place.",
}


def previous_of(path: Path) -> Path:
    """Where the last version but one of a file is kept: ``a.safetensors`` -> ``a.previous.safetensors``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def atomic_write(path: str | os.PathLike, write: Callable[[BinaryIO], None], keep_previous: bool = False) -> None:
    """Write a file through a temporary one beside it; folders on the way are made.

    Args:
        path: the file; replaced where there is one.
        write: called once with the open temporary file, for example ``lambda f: torch.save(state, f)``.
        keep_previous: keep the file that is replaced under :func:`previous_of`.

    Raises:
        OutputError: the file could not be written. The temporary file is gone and the old file as it was.
    """
    path = Path(path)
    # One fixed name: what a killed process leaves behind is overwritten by the next write.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # A rename would put a regular file in place of a device, pipe or folder.
        if path.exists() and not path.is_file():
            msg = f"{path} could not be written: it exists and is not a regular file. Choose another name."
            raise OutputError(msg)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if keep_previous and path.is_file():
                _keep(path)
            os.replace(temporary, path)
        except BaseException:
            _remove(temporary)
            raise
        _fsync_folder(path.parent)
    except OSError as error:
        raise _output_error(path, error) from error
    except RuntimeError as error:
        # torch.save hides the OSError of a full disk behind its own RuntimeError.
        if not isinstance(error.__context__, OSError):
            raise
        raise _output_error(path, error.__context__) from error


def _keep(path: Path) -> None:
    """Give the present file its second name; a hard link, so that the first name never goes missing."""
    link = path.with_name(f".{path.name}.previous.tmp")
    link.unlink(missing_ok=True)
    try:
        try:
            os.link(path, link)
        except OSError:  # a file system without hard links
            shutil.copy2(path, link)
        os.replace(link, previous_of(path))
    except BaseException:
        _remove(link)
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # the error that is already under way matters more
        path.unlink(missing_ok=True)


def _fsync_folder(folder: Path) -> None:
    """Make the rename itself durable; a no-op on systems that cannot open a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _output_error(path: Path, error: OSError) -> OutputError:
    remedy = _REMEDIES.get(error.errno, "Choose another place.")
    return OutputError(f"{path} could not be written: {error.strerror or error}. {remedy}")
