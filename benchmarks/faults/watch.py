"""Reads a file under observation: the error it ends with, the code it would run, and the memory it takes.

An audit hook sees every command, connection and file that the process opens. A limit on the address space stops
allocations, and the kernel's high-water mark gives the memory that was used.
"""

import os
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_invariance.errors import InvarianceError

#: Events of the interpreter that no reader of a file may cause.
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "pty.spawn", "subprocess.Popen",
    "socket.connect", "socket.bind", "urllib.Request", "webbrowser.open",
)  # fmt: skip
#: Events that change files outside of the reader's folder, and the number of their paths.
MOVING = {"shutil.rmtree": 1, "shutil.move": 2, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2}
#: Bytes that a reader may take for each byte of a file, and beside that (buffers, code that is imported).
FACTOR, REST = 100, 64 * 2**20
#: Address space that a reader may reserve beside that.
RESERVED = 512 * 2**20

_seen: list[str] = []
_folder: list[Path] = []


@dataclass(frozen=True)
class Outcome:
    """How reading a file ended.

    Attributes:
        how: ``accepted``, the class of our error, or ``raised`` and the class of another one.
        message: of the error.
        events: forbidden events.
        mebibytes: growth of the resident memory at its peak.
    """

    how: str
    message: str
    events: tuple[str, ...]
    mebibytes: float
    allowed: float

    @property
    def problem(self) -> str | None:
        """What is wrong; None if the file was accepted or refused by name, ran nothing, and took little memory."""
        if self.events:
            return f"ran {', '.join(self.events)}"
        if self.how.startswith("raised"):
            return f"{self.how}: {self.message}"
        if self.mebibytes > self.allowed:
            return f"took {self.mebibytes:.0f} MiB, allowed are {self.allowed:.0f}"
        return "escape characters in the message" if "\x1b" in self.message else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _hook(event: str, arguments: tuple) -> None:
    if not _folder:
        return
    if event in FORBIDDEN:
        _seen.append(f"{event} {arguments[0]!r}"[:200])
    elif event == "open":
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and not _is_inside(arguments[0]):
            _seen.append(f"open for writing {arguments[0]!r}")
    elif event in MOVING and not all(map(_is_inside, arguments[: MOVING[event]])):
        _seen.append(f"{event} {arguments[: MOVING[event]]}"[:200])


def _is_inside(path: Any) -> bool:
    """Whether a path is below the folder that the reader may change; a descriptor is an open file."""
    if not isinstance(path, str | bytes | os.PathLike):
        return True
    whole = Path(os.path.abspath(os.fsdecode(path)))
    return _folder[0] in (whole, *whole.parents) or whole == Path("/dev/null")


def install() -> None:
    """Install the audit hook, which cannot be removed from the process."""
    sys.addaudithook(_hook)


def watch(read: Callable[[Path], Any], path: Path, folder: Path) -> Outcome:
    """Read a file; the reader may change files below ``folder`` only."""
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = _reset_peak()
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + FACTOR * size + RESERVED, hard))
    _seen.clear()
    _folder.append(folder.absolute())
    how, message = "accepted", ""
    try:
        read(path)
    except InvarianceError as error:
        how, message = type(error).__name__, str(error)
    except BaseException as error:  # noqa: BLE001 - any other error is a finding
        how, message = f"raised {type(error).__name__}", f"{error} at {_place(error)}"
    finally:
        _folder.clear()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    taken = (_memory("VmHWM") - before) / 2**20
    return Outcome(how, message[:500], tuple(_seen), round(taken, 1), (FACTOR * size + REST) / 2**20)


def _place(error: BaseException) -> str:
    """The innermost line of the package that the error passed through."""
    place, step = "?", error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if "nnunet_invariance" in file or "/trainers/" in file or "/plans/" in file:
            place = f"{Path(file).name}:{step.tb_lineno}"
        step = step.tb_next
    return place


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)
