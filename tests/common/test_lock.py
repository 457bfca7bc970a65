"""Locks on folders: one owner at a time, the owner is named, a dead owner locks nothing."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from nnunet_invariance.common.lock import LOCK_FILE, lock_folder
from nnunet_invariance.errors import FolderLockedError

HOLD = """
import sys, time
from pathlib import Path
from nnunet_invariance.common.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_the_owner_until_the_owner_is_killed(tmp_path, owner):
    with pytest.raises(FolderLockedError) as error, lock_folder(tmp_path / "run"):
        pass
    for part in ("is in use by", f"process {owner.pid} on {socket.gethostname()}", "started at 20", "Wait for it"):
        assert part in str(error.value)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with lock_folder(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert (tmp_path / "run" / LOCK_FILE).read_text() == ""


def test_a_command_that_inherits_the_lock_is_named_when_its_parent_is_dead(tmp_path):
    with lock_folder(tmp_path) as lock:
        orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owner = {"host": socket.gethostname(), "pid": dead.pid, "started": "2026-01-01T00:00:00+00:00"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(owner))
    with (
        pytest.raises(FolderLockedError, match=rf"a command that process {dead.pid} \(ended\) left running"),
        lock_folder(tmp_path),
    ):
        pass
    orphan.communicate(b"\n")
    with lock_folder(tmp_path):
        pass


@pytest.mark.parametrize(
    ("host", "alive", "free"), [("this", True, False), ("this", False, True), ("another", False, False)]
)
def test_without_flock_the_named_owner_decides(tmp_path, monkeypatch, host, alive, free):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    if not alive:
        process.communicate(b"\n")
    owner = {"host": socket.gethostname() if host == "this" else host, "pid": process.pid, "started": "2026"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(owner))
    try:
        if free:
            with lock_folder(tmp_path):
                pass
        else:
            with pytest.raises(FolderLockedError, match="is in use by"), lock_folder(tmp_path):
                pass
    finally:
        process.communicate(b"\n" if alive else None)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": "x"}', "\0" * 5000])
def test_a_damaged_lock_file_locks_nothing(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    with lock_folder(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert (tmp_path / LOCK_FILE).read_text() == ""
