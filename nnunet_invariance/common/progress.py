"""The progress of a long step: done, rate and time left, as a bar on a terminal and as lines elsewhere."""

import sys
import time
import weakref
from threading import Event, Thread
from typing import Any

from tqdm import tqdm

#: Seconds between two lines where the output is no terminal.
SECONDS = 30
_LINE = "{desc}: {n_fmt}/{total_fmt} {unit}s ({percentage:.0f} %), {rate_fmt}, {remaining} left{postfix}"


class Lines:
    """A file for tqdm that writes every state as a line of standard error."""

    def write(self, text: str) -> None:
        """Write the text without the characters that return to the start of a line; nothing if it is empty."""
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        """Flush standard error."""
        sys.stderr.flush()


class Progress(tqdm):
    """tqdm's bar on standard error; without a terminal, a line every 30 seconds, and none for a shorter step.

    The line is repeated while a single item takes longer, so that a log shows that the command still runs.

    >>> [2 * case for case in Progress([1, 2], desc="doubling", unit="case")]
    [2, 4]

    Args:
        items: what is iterated over; without it, call :meth:`update`.
        desc: what is done.
        unit: what is counted, in the singular.
        total: the number of all steps, if there are no items.
        initial: the number of steps that were done before.
        shown: whether anything is written.
    """

    def __init__(
        self, items: Any = None, *, desc: str, unit: str, total: int | None = None, initial: int = 0, shown: bool = True
    ) -> None:
        given: dict[str, Any] = {"desc": desc, "unit": unit, "total": total, "initial": initial}
        self.shown_at, self._closed, lines = time.monotonic(), Event(), not sys.stderr.isatty()
        if lines:
            given |= {"file": Lines(), "mininterval": SECONDS, "miniters": 1, "delay": SECONDS, "bar_format": _LINE}
        super().__init__(items, disable=not shown, **given)
        if lines and shown:
            Thread(target=_repeat, args=(weakref.ref(self), self._closed), daemon=True).start()

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """As tqdm; notes the time."""
        self.shown_at = time.monotonic()
        return super().display(msg, pos)

    def close(self) -> None:
        """As tqdm; no line follows."""
        self._closed.set()
        super().close()


def _repeat(progress: "weakref.ref[Progress]", closed: Event) -> None:
    """Write the line again whenever it is 30 seconds old, until the step is finished or nobody needs it."""
    while not closed.wait(SECONDS):
        bar = progress()
        if bar is None:
            return
        if time.monotonic() - bar.shown_at >= SECONDS:
            bar.refresh()
        del bar  # while this thread waits, it does not keep the bar alive
