"""Atomic writes: a reader sees either the old file or the complete new file."""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from nnunet_invariance.errors import OutputError

__all__ = ["atomic_write", "atomic_write_path", "previous_of"]

_REMEDIES = {
    errno.ENOSPC: "Free some space on that disk or choose another folder.",
    errno.EDQUOT: "Your disk quota is used up: free some space or choose another folder.",
    errno.EFBIG: "The file is larger than this process may write: raise the limit (ulimit -f) or choose another disk.",
    errno.EACCES: "Make the folder writable for this user or choose another folder.",
    errno.EPERM: "Make the folder writable for this user or choose another folder.",
    errno.EROFS: "That disk is mounted read-only: choose another folder.",
    errno.ENOTDIR: "A file has the name of a folder that is needed: move it away or choose another folder.",
    errno.EEXIST: "A file has the name of a folder that is needed: move it away or choose another folder.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


def previous_of(path: Path) -> Path:
    """Path under which the previous version of a file is kept.

    >>> previous_of(Path("a.safetensors")).name
    'a.previous.safetensors'
    """
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def atomic_write(path: str | os.PathLike, write: Callable[[BinaryIO], object], keep_previous: bool = False) -> None:
    """Write a file through a temporary file in the same folder, and create missing folders.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "new" / "a.txt"
    >>> atomic_write(path, lambda file: file.write(b"text"))
    >>> path.read_text()
    'text'

    Args:
        path: the file; it is replaced if it exists, and keeps its permissions.
        write: called once with the open temporary file, for example ``lambda f: torch.save(state, f)``.
        keep_previous: keep the replaced file under :func:`previous_of`.

    Raises:
        OutputError: the file could not be written. The temporary file is removed and the old file is unchanged.
    """

    def write_to(temporary: Path) -> None:
        with open(temporary, "wb", opener=_open_without_following) as file:
            write(file)

    path = Path(path)
    # The suffix differs from that of the file, so that a file left by a killed process does not match "*.json".
    _replace(path, path.with_name(f".{path.name}.tmp"), write_to, keep_previous)


def atomic_write_path(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Same as :func:`atomic_write` for writers that need a file name, such as matplotlib's.

    Args:
        path: the file; it is replaced if it exists, and keeps its permissions.
        write: called once with the path of the temporary file, which exists, is empty, and has the suffix of ``path``.

    Raises:
        OutputError: as for :func:`atomic_write`.
    """
    path = Path(path)
    _replace(path, path.with_name(f".tmp_{path.name}"), write, keep_previous=False)


def _replace(path: Path, temporary: Path, write: Callable[[Path], object], keep_previous: bool) -> None:
    """Write the temporary file and rename it; the name is fixed, so the next write replaces a leftover file."""
    try:
        # A rename would replace a device, pipe or folder by a regular file.
        if path.exists() and not path.is_file():
            msg = f"{path} could not be written: it exists and is not a regular file. Choose another name."
            raise OutputError(msg)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _create(temporary, path)
            write(temporary)
            _sync(temporary)
            if keep_previous and path.is_file():
                _keep_previous(path)
            os.replace(temporary, path)
        except BaseException:
            _remove(temporary)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise _output_error(path, error) from error
    except RuntimeError as error:
        # If the disk is full, torch.save raises a RuntimeError while it handles the OSError.
        if not isinstance(error.__context__, OSError):
            raise
        raise _output_error(path, error.__context__) from error


def _create(temporary: Path, path: Path) -> None:
    """Create an empty file exclusively, with the permissions of the file that it will replace."""
    temporary.unlink(missing_ok=True)
    replaces = path.is_file()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if replaces else 0o666)
    try:
        if replaces:
            os.fchmod(descriptor, stat.S_IMODE(path.stat().st_mode))
    finally:
        os.close(descriptor)


def _open_without_following(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _keep_previous(path: Path) -> None:
    """Keep the current file under its previous-version name, by a hard link so that ``path`` always exists."""
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
    with contextlib.suppress(OSError):  # the original error must not be hidden
        path.unlink(missing_ok=True)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make the rename durable; a no-op on systems that cannot open a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _output_error(path: Path, error: OSError) -> OutputError:
    remedy = _REMEDIES.get(error.errno or 0, "Choose another folder.")
    return OutputError(f"{path} could not be written: {error.strerror or error}. {remedy}")
