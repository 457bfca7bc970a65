"""Run the jobs of a comparison: on this machine, several at a time, or as a Slurm array."""

import functools
import importlib.util
import logging
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from nnunet_invariance.common.extras import install_command
from nnunet_invariance.errors import ComparisonError, InvarianceError, MissingPackageError
from nnunet_invariance.evaluation.runner.jobs import Job, run_job
from nnunet_invariance.evaluation.runner.progress import JobProgress, job_progress

logger = logging.getLogger(__name__)


class _Cancelled(Exception):
    """Another job or the user ended the run; the commands of this job are ended."""


def run_jobs(
    jobs: Sequence[Job], keep_open: Sequence[int] = (), parallel: int = 1, devices: Sequence[str] = ()
) -> None:
    """Run the unfinished jobs in their order, ``parallel`` at a time; a job that fails does not stop the others.

    Args:
        devices: values of CUDA_VISIBLE_DEVICES; every job gets one of them, the least used first.

    Raises:
        ComparisonError: jobs failed; names all of them, with the first one's message.
    """
    failed: dict[str, Exception] = {}
    stop = threading.Event()
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for number in range(parallel):
        free.put(devices[number % len(devices)] if devices else None)
    todo = [job for job in jobs if not job.finished]
    logger.info("%d of %d trainings are done", len(jobs) - len(todo), len(jobs))
    with job_progress(jobs) as bar, ThreadPoolExecutor(parallel) as pool, _stopping(stop):
        work = functools.partial(_work, stop=stop, free=free, keep_open=keep_open, bar=bar)
        running = {pool.submit(work, job): job for job in todo}
        for future in as_completed(running):
            error = future.exception()
            if isinstance(error, Exception) and not isinstance(error, _Cancelled):
                failed[running[future].name] = error
                unexpected = None if isinstance(error, InvarianceError) else error
                logger.error("%s failed: %s", running[future].name, error, exc_info=unexpected)
            elif error is not None:
                raise error
    if failed:
        msg = f"{len(failed)} of {len(jobs)} trainings did not finish: {', '.join(failed)}. "
        first = next(iter(failed.values()))
        message = first if isinstance(first, InvarianceError) else repr(first)
        raise ComparisonError(f"{msg}The others did. The first error: {message}") from first


def _work(job: Job, stop: threading.Event, free: queue.SimpleQueue, keep_open: Sequence[int], bar: JobProgress) -> None:
    """One job on the next free device."""

    def on_poll() -> None:
        if stop.is_set():
            raise _Cancelled
        bar.update(job)

    if stop.is_set():
        return
    device = free.get()
    try:
        logger.info("%s%s", job.name, f" on device {device}" if device else "")
        run_job(job, on_poll, keep_open, {"CUDA_VISIBLE_DEVICES": device} if device else {})
    finally:
        free.put(device)
    bar.update(job)


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """End the commands of all jobs if the block ends early, also by SIGTERM."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, leave) if main else None
    try:
        yield
    except BaseException:
        stop.set()
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def require_submitit() -> None:
    """Check that submitit is installed.

    Raises:
        MissingPackageError: it is not.
    """
    if importlib.util.find_spec("submitit") is None:
        msg = f"--submit slurm needs submitit, which is not installed. Run `{install_command('slurm')}`."
        raise MissingPackageError(msg)


def submit_slurm(jobs: Sequence[Job], folder: Path, parallel: int, parameters: dict[str, str | int]) -> list[str]:
    """Submit the unfinished jobs to Slurm as one array, ``parallel`` at a time; returns the ids of its tasks.

    Args:
        folder: for submitit's scripts and logs.
        parameters: of ``submitit.AutoExecutor``, for example ``timeout_min`` and ``slurm_partition``.

    Raises:
        MissingPackageError: submitit is not installed.
        ComparisonError: Slurm is not available, or it refused the jobs.
    """
    require_submitit()
    import submitit

    todo = [job for job in jobs if not job.finished]
    if not todo:
        return []
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        executor.update_parameters(slurm_array_parallelism=parallel, name="few-shot", **parameters)
        submitted = executor.map_array(_task, todo)
    except (RuntimeError, OSError, NameError, TypeError) as error:  # submitit's errors about parameters and sbatch
        msg = f"Slurm accepted no job ({error}). Correct --slurm, run this where sbatch is, or leave out --submit."
        raise ComparisonError(msg) from error
    return [job.job_id for job in submitted]


def _task(job: Job) -> None:
    """Run one task of the array."""
    run_job(job)
