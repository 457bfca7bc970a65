"""Console scripts as processes: find, start, log and wait for them."""

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
#: nnU-Net's messages when a process for data loading or export was killed.
WORKER_DIED = ("background workers are no longer alive", "Background workers died")
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
    """Run a console script in ``folder``, append its output to ``log``, and return the seconds it took.

    ``environment`` is added to that of this process. ``on_poll`` is called twice a second while the command runs. The
    command inherits the file descriptors ``keep_open``, so that a lock is held as long as it runs. SIGINT and SIGTERM
    to this process end the command first.

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
        msg = f"{job}: `{' '.join(command)}` {_ending(process.returncode, tail)} {log} ends with:\n{tail}"
        raise ComparisonError(msg)
    return time.monotonic() - start


def _ending(status: int, tail: str) -> str:
    """How a command ended, and the remedy."""
    if status == -signal.SIGKILL:
        return (
            "was ended by SIGKILL; the system does this when memory is short. Free memory, run fewer trainings at a "
            "time (--jobs) or lower nnUNet_n_proc_DA, and repeat the command: it continues."
        )
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    if any(message in tail for message in WORKER_DIED):
        how = f"{how}, because one of its worker processes died; often memory is short (lower nnUNet_n_proc_DA)"
    return f"{how}. Correct what its log says and repeat the command."


@contextmanager
def _ended(process: subprocess.Popen) -> Iterator[None]:
    """End the command and its workers, however the block ends."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    # Python can set handlers in its main thread only; in another thread, the caller handles SIGTERM.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()  # not its group yet: a pre-training needs its workers to save its state
            process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        if main:
            signal.signal(signal.SIGTERM, before)
