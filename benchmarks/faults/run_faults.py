"""Faults of runs: disk, memory, workers, ranks, signals and the clock."""

import contextlib
import errno
import json
import logging
import os
import resource
import shutil
import signal
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from benchmarks.faults.fault import fault, warnings
from benchmarks.faults.subjects import CONFIGURATION, PLANS
from nnunet_invariance.common import atomic
from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.common.lock import lock_folder
from nnunet_invariance.errors import DamagedFileError
from nnunet_invariance.evaluation.runner import stock_commands
from nnunet_invariance.nnunet import unlabelled_images
from nnunet_invariance.nnunet.cases import Manifest, scan_cases
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.plans import preflight
from nnunet_invariance.pretraining.engine import folder as run_folder
from nnunet_invariance.pretraining.engine import rank_monitor
from nnunet_invariance.pretraining.engine.loop import PretrainingStopped
from nnunet_invariance.weights.foreign import open_foreign
from nnunet_invariance.weights.locate import LATEST
from tests.helpers.hostile_files import archive, called, entries, integer, named
from tests.helpers.line_method import Line, Numbers, make_loop
from tests.helpers.tiny_dataset import NAME, synthetic_case
from tests.helpers.tiny_trainers import make_trainer

# ---- disk ------------------------------------------------------------------------------------------------------------


def _failing(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def _write_with(name: str, number: int, part: str) -> None:
    @fault("disk", name, "a.json could not be written", part)
    def write(folder: Path) -> str:
        atomic._sync = _failing(number)
        atomic_write(folder / "a.json", lambda file: file.write(b"{}"))
        return ""


for _name, _number, _part in (
    ("the disk is full", errno.ENOSPC, "Free some space"),
    ("the quota is used up", errno.EDQUOT, "quota is used up"),
    ("the disk is mounted read-only", errno.EROFS, "mounted read-only"),
    ("the folder belongs to another user", errno.EACCES, "Make the folder writable"),
    ("the disk has a hardware error", errno.EIO, "Input/output error", ),
):  # fmt: skip
    _write_with(_name, _number, _part)


@fault("disk", "a file exceeds the limit of the process", "could not be written", "raise the limit (ulimit -f)")
def _limit(folder: Path) -> str:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    atomic_write(folder / "a", lambda file: file.write(bytes(5000)))
    return ""


@fault("disk", "the disk is too small for the checkpoints", "needs 50.0 GB for checkpoints", "Free some space")
def _small(folder: Path) -> str:
    usage = namedtuple("usage", "free")
    preflight.shutil.disk_usage = lambda _: usage(10**9)  # type: ignore[assignment, attr-defined]
    preflight.check_output(folder / "run", 50e9)
    return ""


@fault("disk", "a file has the name of the output folder", "cannot be made", "is a file", "choose another folder")
def _taken(folder: Path) -> str:
    (folder / "run").touch()
    preflight.check_output(folder / "run" / "deeper")
    return ""


@fault("disk", "log.txt is a folder", "The log", "log.txt cannot be written")
def _log(folder: Path) -> str:
    (folder / "log.txt").mkdir()
    with run_folder.package_log(DistributedContext(0, 1, torch.device("cpu"))) as write_to:
        write_to(folder / "log.txt")
    return ""


@fault("disk", "the file system has no hard links", "kept as a copy")
def _links(folder: Path) -> str:
    atomic.os.link = _failing(errno.EPERM)  # type: ignore[attr-defined]
    for text in (b"old", b"new"):
        atomic_write(folder / "a.json", lambda file, text=text: file.write(text), keep_previous=True)
    assert (folder / "a.previous.json").read_bytes() == b"old"
    return "the previous version is kept as a copy"


# ---- memory ----------------------------------------------------------------------------------------------------------


def _scans(folder: Path, number: int) -> Path:
    import SimpleITK as sitk

    (folder / "scans").mkdir()
    for index in range(number):
        sitk.WriteImage(synthetic_case((20, 20, 20), index)[0], str(folder / "scans" / f"s{index}.nii.gz"))
    return folder / "scans"


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@fault("memory", "the system kills a process that preprocesses scans", "0 of 2 scans are finished", "nnUNet_def_n_proc")
def _preprocessing(folder: Path) -> str:
    from multiprocessing import get_context

    unlabelled_images.get_context = lambda _: get_context("fork")  # type: ignore[assignment]
    unlabelled_images.preprocess_scan = _die  # type: ignore[assignment]
    unlabelled_images.preprocess_images([_scans(folder, 2)], open_planned_dataset(NAME, CONFIGURATION, PLANS))
    return ""


@fault("memory", "the system kills nnUNetv2_train", "ended by SIGKILL", "memory is short", "--jobs")
def _training(folder: Path) -> str:
    stock_commands.command_path = lambda name: f"/bin/{name}"
    stock_commands.run_command("arm/shots1, train", ["sh", "-c", "kill -9 $$"], folder / "log", folder, {})
    return ""


@fault("memory", "a file of 400 bytes asks for 2 GB", "would allocate 2,000,000,000 bytes", "Ask its author")
def _hostile(folder: Path) -> str:
    payload = called(named("builtins", "bytearray"), integer(2 * 10**9))
    (folder / "a.pth").write_bytes(archive(entries(payload)))
    open_foreign(folder / "a.pth")
    return ""


@fault("memory", "the plan needs more memory than there is", "needs about", "-gpu_memory_target")
def _plan(folder: Path) -> str:
    planned = open_planned_dataset(NAME, CONFIGURATION, PLANS)
    preflight.available_memory = lambda device: 1e6  # type: ignore[assignment]
    with warnings() as lines:
        preflight.warn_of_memory(planned, preflight.check_plan(planned), "cpu")
    return lines[0]


@fault("memory", "the GPU is full in a training step", "ran out of memory", "Remedy")
def _step(folder: Path) -> str:
    base = Path(os.environ["nnUNet_preprocessed"])
    os.environ["nnUNet_results"] = str(folder)
    plans = json.loads((base / NAME / f"{PLANS}.json").read_text())
    trainer = make_trainer(SimpleNamespace(preprocessed=base, name=NAME), "AliceTrainer_scratch_1epoch", plans)
    trainer.losses_of_views = _out_of_memory
    trainer.run_training()
    return ""


def _out_of_memory(*_: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory.")


# ---- workers and ranks -----------------------------------------------------------------------------------------------


class _Troubled(Numbers):
    def __init__(self, steps: int, trouble: Callable[[], None]) -> None:
        super().__init__(steps)
        self.trouble = trouble

    def __getitem__(self, step: int) -> dict[str, Any]:
        if step == 3:
            self.trouble()
        return super().__getitem__(step)


def _run_with(folder: Path, trouble: Callable[[], None], timeout: float = 60) -> str:
    class Reader(Line):
        def dataset(self, steps: int, seed: int, rank: int) -> Any:
            return _Troubled(steps, trouble)

    make_loop(Reader(), folder, workers=1, timeout=timeout).run()
    return ""


@fault("worker", "a data worker is killed", "A data worker died", "use fewer workers", "continue with --c")
def _killed(folder: Path) -> str:
    return _run_with(folder, lambda: os.kill(os.getpid(), signal.SIGKILL))


@fault("worker", "a data worker is stopped", "No data worker delivered a batch within 2 seconds", "(stopped)")
def _stopped(folder: Path) -> str:
    return _run_with(folder, lambda: os.kill(os.getpid(), signal.SIGSTOP), timeout=2)


@fault("worker", "a data worker reads a damaged case", "case_003.b2nd is damaged", "Preprocess it again")
def _reads(folder: Path) -> str:
    def fail() -> None:
        raise DamagedFileError("case_003.b2nd is damaged. Preprocess it again.")

    return _run_with(folder, fail)


@contextlib.contextmanager
def _ranks(alive: tuple[int, ...]) -> Iterator[rank_monitor.RankMonitor]:
    store = dist.HashStore()
    rank_monitor.INTERVAL = 0.05
    distributed_c10d._get_default_store = lambda: store
    distributed_c10d._set_pg_timeout = lambda *_: None
    contexts = [DistributedContext(rank, 3, torch.device("cpu")) for rank in (0, *alive)]
    with contextlib.ExitStack() as stack:
        monitors = [stack.enter_context(rank_monitor.RankMonitor(context, 30)) for context in contexts]
        yield monitors[0]


def _lost(alive: tuple[int, ...], said: str) -> str:
    with _ranks(alive) as monitor:
        return str(monitor.error_for(RuntimeError(said)))


@fault("rank", "a rank dies", "Rank 0 lost contact", "rank 2 does not respond", "continue with --c")
def _dead(folder: Path) -> str:
    return _lost((1,), "[gloo] Connection closed by peer")


@fault("rank", "two ranks are stopped", "rank 1, 2 does not respond (limit 30 seconds", "timeout=SECONDS")
def _stopped_ranks(folder: Path) -> str:
    return _lost((), "gloo: Timed out waiting 30000ms for recv operation")


@fault("rank", "a rank is slow", "every rank responds, but one is slower", "raise --set timeout=SECONDS")
def _slow(folder: Path) -> str:
    return _lost((1, 2), "gloo: Timed out waiting 30000ms for recv operation")


# ---- signals ---------------------------------------------------------------------------------------------------------


def _signalled(number: signal.Signals) -> None:
    @fault("signal", number.name, "stopped at step", "the state is saved, continue with --c")
    def send(folder: Path) -> str:
        class Reader(Line):
            def after_step(self, output: Any, progress: float) -> None:
                os.kill(os.getpid(), number)

        try:
            make_loop(Reader(), folder, workers=0).run()
        except PretrainingStopped as stopped:
            assert (folder / LATEST).is_file()
            return str(stopped)
        return ""


for _signal in (signal.SIGTERM, signal.SIGINT):
    _signalled(_signal)


@fault("signal", "SIGKILL of a run whose data worker lives on", "the folder is free")
def _orphan(folder: Path) -> str:
    holder = os.fork()
    if not holder:
        with run_folder.hold_folder(folder / "run"):
            if os.fork() == 0:
                time.sleep(3)
                os._exit(0)
            (folder / "begun").touch()
            time.sleep(60)
    while not (folder / "begun").exists():
        time.sleep(0.01)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with lock_folder(folder / "run"):
        return "the folder is free"


@fault("signal", "SIGTERM to evaluate while a command runs", "status 143")
def _evaluate(folder: Path) -> str:
    stock_commands.command_path = lambda name: f"/bin/{name}"
    try:
        words = ["sh", "-c", "sleep 1; kill -TERM $PPID; sleep 60"]
        stock_commands.run_command("job", words, folder / "log", folder, {})
    except SystemExit as stop:
        return f"the command was ended, status {stop.code}"
    return ""


# ---- clock -----------------------------------------------------------------------------------------------------------


@fault("clock", "the clock is set back to the time of an earlier run", "moved to")
def _back(folder: Path) -> str:
    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Frozen":
            return cls(2026, 1, 1)

    run_folder.datetime = Frozen  # type: ignore[misc]
    with warnings() as lines:
        for _ in range(3):
            (folder / "run").mkdir(exist_ok=True)
            (folder / "run" / LATEST).touch()
            run_folder.start_folder(folder / "run", Manifest((), ()))
    assert len(list(folder.iterdir())) == 4
    return lines[-1]


@fault("clock", "a case was replaced, and its time is older than the cache", "inspected again")
def _older(folder: Path) -> str:
    planned = open_planned_dataset(NAME, CONFIGURATION, PLANS)
    cases = Path(shutil.copytree(planned.folder, folder / "cases"))
    before = {case.name: case.content for case in scan_cases(cases, 1, (4, 4, 4))[0]}
    shutil.copy(cases / "case_001.b2nd", cases / "case_000.b2nd")
    os.utime(cases / "case_000.b2nd", (0, 0))
    after = {case.name: case.content for case in scan_cases(cases, 1, (4, 4, 4))[0]}
    assert before["case_001"] == after["case_000"] != before["case_000"]
    return "the case is inspected again"


@fault("clock", "the clock jumps by a year during a run", "iterations per second are those of a monotonic clock")
def _jump(folder: Path) -> str:
    real = time.time
    time.time = lambda: real() + 365 * 86400  # type: ignore[assignment]
    loop = make_loop(Line(), folder, workers=0)
    logging.disable(logging.WARNING)
    loop.run()
    assert loop.history[-1]["seconds"] < 60
    return "iterations per second are those of a monotonic clock"
