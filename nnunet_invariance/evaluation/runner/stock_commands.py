"""nnU-Net's own commands as processes: found, started, logged, waited for."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from nnunet_invariance.errors import ComparisonError

POLL_SECONDS = 0.5
TAIL_LINES = 12


def command_path(name: str) -> str:
    """Path of a console script of this environment; the one beside the running Python wins over ``PATH``.

    Raises:
        ComparisonError: there is none.
    """
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    path = shutil.which(name, path=folders)
    if path is None:
        msg = f"The command {name} was not found beside {sys.executable} or in PATH. Install nnunetv2 there."
        raise ComparisonError(msg)
    return path


def run_command(
    job: str,
    command: Sequence[str],
    log: Path,
    folder: Path,
    environment: Mapping[str, str],
    on_poll: Callable[[], None] = lambda: None,
    keep_open: Sequence[int] = (),
) -> float:
    """Run a console script in ``folder``, append what it says to ``log``, and return the seconds it took.

    ``environment`` is added to this process's own. ``on_poll`` is called twice a second meanwhile. File descriptors in
    ``keep_open`` are inherited, so that a lock lives as long as the command. SIGINT and SIGTERM to this process end the
    command first.

    Raises:
        ComparisonError: the command failed; names the job, the log and its last lines.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("ab") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            [command_path(command[0]), *command[1:]],
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            pass_fds=tuple(keep_open),
            start_new_session=True,
        )
        with _ended(process):
            while process.poll() is None:
                on_poll()
                time.sleep(POLL_SECONDS)
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        what = f"{job}: `{' '.join(command)}` ended with status {process.returncode}"
        msg = f"{what}. Correct what its log says and run this again. {log} ends with:\n{tail}"
        raise ComparisonError(msg)
    return time.monotonic() - start


@contextmanager
def _ended(process: subprocess.Popen) -> Iterator[None]:
    """Leave neither the command nor a worker of it behind, whatever ends the block."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    # Python may set handlers in its main thread only; elsewhere SIGTERM is the caller's business.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()  # not the group at once: a pre-training saves its state first and needs its workers
            process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        if main:
            signal.signal(signal.SIGTERM, before)
