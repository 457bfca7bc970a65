"""The progress of a long step: done, rate and time left, as a bar on a terminal and as lines elsewhere."""

import sys
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
        if not sys.stderr.isatty():
            given |= {"file": Lines(), "mininterval": SECONDS, "miniters": 1, "delay": SECONDS, "bar_format": _LINE}
        super().__init__(items, disable=not shown, **given)
