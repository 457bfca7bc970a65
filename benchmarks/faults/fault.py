"""What a fault of the matrix is, and how it is provoked in a child process that reports the user's message."""

import contextlib
import io
import json
import logging
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults import warm
from nnunet_invariance.cli.main import main as command_line
from nnunet_invariance.errors import InvarianceError

#: Seconds after which a fault counts as a hang.
LONGEST = 120.0


@dataclass(frozen=True)
class Fault:
    """One disturbance.

    Attributes:
        area: file, disk, memory, worker, rank, signal, clock or environment.
        name: what is disturbed.
        expected: parts of the message, in this order.
        provoke: disturbs and runs in an empty folder; raises our error, or returns what the user is told.
    """

    area: str
    name: str
    expected: tuple[str, ...]
    provoke: Callable[[Path], str | None]


FAULTS: list[Fault] = []


def fault(area: str, name: str, *expected: str) -> Callable[[Callable[[Path], str | None]], Callable]:
    """Register a function as a fault."""

    def register(provoke: Callable[[Path], str | None]) -> Callable:
        FAULTS.append(Fault(area, name, expected, provoke))
        return provoke

    return register


@dataclass(frozen=True)
class Answer:
    """How a fault ended: our error's class, ``told`` (a log line or an output), or what is wrong; and the message."""

    ended: str
    message: str
    seconds: float

    def problem(self, expected: tuple[str, ...]) -> str | None:
        """What is wrong with the answer; None if it is as expected."""
        if self.ended.startswith("raised") or self.ended == "hung":
            return f"{self.ended}: {self.message}"
        place = 0
        for part in expected:
            place = self.message.find(part, place)
            if place < 0:
                return f"the message lacks {part!r}: {self.message}"
        return None


def ask(one: Fault, folder: Path) -> Answer:
    """Provoke a fault in a child process, so that nothing of it is left in this one."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "empty").mkdir(parents=True)
    start = time.monotonic()
    child = warm.start(warm.trees(), folder / "output.txt", _provoke, one.name, folder)
    if warm.wait(child, LONGEST) is None:
        child.kill()
        child.join()
        return Answer("hung", f"no end within {LONGEST:g} seconds", LONGEST)
    seconds = round(time.monotonic() - start, 2)
    report = folder / "report.json"
    if not report.is_file():
        return Answer("raised nothing", (folder / "output.txt").read_text(errors="replace")[-500:], seconds)
    ended, message = json.loads(report.read_text())
    for place, name in ((folder / "empty", "DIR"), (folder.parent, "WORK")):
        message = message.replace(str(place), name)
    return Answer(ended, message, seconds)


def _provoke(name: str, folder: Path) -> None:
    from benchmarks.faults import matrix

    one = next(fault for fault in matrix.FAULTS if fault.name == name)
    try:
        told = one.provoke(folder / "empty")
        report = ("told", told) if told else ("raised nothing", "the command succeeded without a word")
    except InvarianceError as error:
        report = (type(error).__name__, str(error))
    except BaseException as error:  # noqa: BLE001 - a traceback is a finding
        traceback.print_exc()
        report = (f"raised {type(error).__name__}", str(error))
    (folder / "report.json").write_text(json.dumps(report))


def command(*words: object) -> str:
    """Run our command line; returns what it printed as an error.

    Raises:
        AssertionError: its status is not 1 or 2, or there is a traceback.
    """
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            status: object = command_line([str(word) for word in words])
        except SystemExit as stop:  # argparse
            status = stop.code
    if status not in (1, 2) or "Traceback" in errors.getvalue():
        raise AssertionError(f"status {status}: {errors.getvalue()}")
    return " ".join(errors.getvalue().rpartition(f"nnunet-invariance {words[0]}: ")[2].split())


@contextlib.contextmanager
def warnings():
    """Collect the warnings of the package."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Collect(logging.WARNING)
    logging.getLogger("nnunet_invariance").addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger("nnunet_invariance").removeHandler(handler)
