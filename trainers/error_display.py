"""Show the errors of this package without a traceback at the end of a stock command."""

import sys
from types import TracebackType

from nnunet_invariance.errors import InvarianceError


def show_message_only() -> None:
    """Let an uncaught :class:`InvarianceError` print its message without the traceback; other errors keep theirs.

    The stock commands know nothing of this package and end with 15 to 25 lines of traceback, below which the message
    and its remedy are easily overlooked. A second call changes nothing.
    """
    if not isinstance(sys.excepthook, _MessageOnly):
        sys.excepthook = _MessageOnly()


class _MessageOnly:
    """An exception hook that falls back to the one that was installed before it."""

    def __init__(self) -> None:
        self.previous = sys.excepthook

    def __call__(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, InvarianceError):
            sys.stderr.write(f"\n{kind.__name__}: {error}\n")
        else:
            self.previous(kind, error, traceback)
