"""Advisory locks on folders, so that two processes do not write to the same results folder.

The lock is a file named ``lock`` in the folder, held with ``flock``. The kernel releases it when the last process that
holds the descriptor ends, so a killed process does not leave a locked folder behind. The file also contains host,
process id and start time of the owner for the error message.

Network file systems: Linux's NFS client (since 2.6.12) and Lustre mounted with ``flock`` send the lock to the server,
so it works across hosts. With ``local_lock=flock`` (NFS) or ``localflock`` (Lustre), it works only between processes of
one host. If the file system does not support ``flock``, the owner named in the lock file decides: an owner on this host
locks the folder while its process runs, and an owner on another host locks it until the file is deleted.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nnunet_invariance.errors import FolderLockedError

__all__ = ["LOCK_FILE", "lock_folder"]

LOCK_FILE = "lock"
_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@contextmanager
def lock_folder(folder: Path) -> Iterator[int]:
    """Lock a folder, which is created if it does not exist; yields the descriptor of the lock file.

    A child process that inherits the descriptor keeps the folder locked if this process is killed.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with lock_folder(folder):
    ...     try:
    ...         with lock_folder(folder): pass
    ...     except FolderLockedError as error:
    ...         print("is in use" in str(error))
    True

    Raises:
        FolderLockedError: another process holds the lock; the message names host, process and start time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        _acquire(descriptor, folder)
        _write_owner(descriptor)
        try:
            yield descriptor
        finally:
            os.ftruncate(descriptor, 0)  # no owner
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _locked(folder, _read_owner(descriptor)) from error
    except OSError as error:
        owner = _read_owner(descriptor)
        if error.errno not in _UNSUPPORTED:
            raise
        if owner and _may_live(owner):
            raise _locked(folder, owner) from error


def _locked(folder: Path, owner: dict[str, Any]) -> FolderLockedError:
    who = "another process"
    if owner:
        who = f"process {owner['pid']} on {owner['host']}, which started at {owner['started']}"
        if owner["host"] == socket.gethostname() and not _is_alive(owner["pid"]):
            who = f"a command that process {owner['pid']} (ended) left running"
    msg = f"{folder} is in use by {who}. Wait for it or stop it; if no such process runs, delete {folder / LOCK_FILE}."
    return FolderLockedError(msg)


def _may_live(owner: dict[str, Any]) -> bool:
    """Whether the owner may still be running; a process on another host is assumed to run."""
    return owner["host"] != socket.gethostname() or (owner["pid"] != os.getpid() and _is_alive(owner["pid"]))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process belongs to another user
        return True
    return True


def _read_owner(descriptor: int) -> dict[str, Any]:
    """Read the owner from the lock file; empty if there is none or the file is damaged."""
    with contextlib.suppress(ValueError):
        owner = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
        if isinstance(owner, dict) and isinstance(owner.get("pid"), int) and {"host", "started"} <= owner.keys():
            return owner
    return {}


def _write_owner(descriptor: int) -> None:
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)
