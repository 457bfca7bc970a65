"""Counts the steps of every atomic write of a process, and kills the process at one of them."""

import builtins
import os
import signal
from collections.abc import Callable
from typing import Any, BinaryIO

from nnunet_invariance.common import atomic


class CrashPoints:
    """The steps in their order; at number ``kill_at`` the process gets SIGKILL, which no handler can delay.

    The points of one file are: before it is created, in the middle of its first and last piece, before fsync, before
    and after the previous version is kept, before and after the rename, and before the folder is synchronised. The
    points before and after one file lie between it and the next.
    """

    def __init__(self, kill_at: int | None = None) -> None:
        self.kill_at = kill_at
        self.names: list[str] = []

    def reach(self, name: str) -> None:
        """Count a point, and die there if it is the chosen one."""
        self.names.append(name)
        if len(self.names) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Put the points into :mod:`nnunet_invariance.common.atomic`, for the rest of this process."""
        replace, place = os.replace, atomic

        def renamed(source: Any, target: Any, **others: Any) -> None:
            self.reach("before rename")
            replace(source, target, **others)
            self.reach("after rename")

        def opened(path: Any, mode: str = "r", **others: Any) -> Any:
            file = builtins.open(path, mode, **others)  # noqa: SIM115 - the caller closes it
            return _Pieces(file, self) if "w" in mode else file

        place._create = self._before("before creation", atomic._create)
        place._sync = self._before("before fsync", atomic._sync)
        place._keep_previous = self._before("before the previous version is kept", atomic._keep_previous)
        place._sync_folder = self._before("before the folder is synchronised", atomic._sync_folder)
        os.replace = renamed
        place.open = opened  # type: ignore[attr-defined]  # shadows the built-in function in this module

    def _before(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **others: Any) -> Any:
            self.reach(name)
            return function(*arguments, **others)

        return wrapped


class _Pieces:
    """An open file whose first and last pieces are written in two halves, with a point between them."""

    def __init__(self, file: BinaryIO, points: CrashPoints) -> None:
        self.file, self.points, self.begun = file, points, False

    def write(self, data: Any) -> int:
        if memoryview(data).nbytes == 0:
            return 0
        view = memoryview(data).cast("B")
        if not self.begun and len(view) > 1:
            self.begun = True
            self.file.write(view[: len(view) // 2])
            self.file.flush()
            self.points.reach("in the middle of a write")
            self.file.write(view[len(view) // 2 :])
        else:
            self.file.write(view)
        return len(view)

    def __enter__(self) -> "_Pieces":
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.file.flush()
            self.points.reach("before the file is closed")
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)
