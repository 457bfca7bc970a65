"""Batches from the data workers; a worker that dies or stops is a named error."""

import multiprocessing
import queue
import signal
import threading
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from nnunet_invariance.errors import InvarianceError, WorkerError
from nnunet_invariance.pretraining.engine.options import LoopOptions

#: Seconds that the workers get to end before the main process goes on.
SHUTDOWN_SECONDS = 10.0
TIMED_OUT = "no data worker delivered a batch in time"


class _ErrorsAsItems(Dataset):
    """Return the named errors of a data set, so that they cross the process boundary without a traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except InvarianceError as error:
            return error


def _leave_signals_to_the_main_process(worker: int) -> None:
    # A terminal or a scheduler signals all processes at once; the main one still needs its workers for the last step.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def load_batches(
    dataset: Dataset, options: LoopOptions, first_step: int, pin_memory: bool
) -> Generator[Any, None, None]:
    """The batches from step ``first_step`` to the end of the run; the workers start at once.

    Raises:
        WorkerError: a worker died, or did not deliver within ``options.timeout`` seconds.
        InvarianceError: what the data set raises.
    """
    accumulated = options.grad_accum_steps
    loader = DataLoader(
        _ErrorsAsItems(dataset),
        batch_size=None,
        sampler=range(first_step * accumulated, options.steps * accumulated),
        num_workers=options.workers,
        generator=torch.Generator(),  # otherwise the loader uses the global generator, once per start
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_main_process,
    )
    items = iter(loader)
    return _raise_items(_with_timeout(items, options.timeout) if options.workers else items)


def _with_timeout(items: Iterator[Any], seconds: float) -> Iterator[Any]:
    """The items, from a thread: the loader's own timeout does not cover the transfer of tensors from a worker."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=1)
    closed = threading.Event()

    def fetch(items: Iterator[Any]) -> None:
        try:
            for item in items:
                _put(ready, (item, None), closed)
                if closed.is_set():
                    return
            _put(ready, (None, StopIteration()), closed)
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            closed.wait(1)  # PyTorch's signal handler raises the cause in the main thread
            _put(ready, (None, RuntimeError(f"DataLoader worker closed its connection ({error}).")), closed)
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            _put(ready, (None, error), closed)

    thread = threading.Thread(target=fetch, args=(items,), daemon=True)
    thread.start()
    del items
    patience = SHUTDOWN_SECONDS
    try:
        while True:
            try:
                item, error = ready.get(timeout=seconds)
            except queue.Empty:
                patience = 0.0  # a stopped worker does not end by itself; the caller kills it
                raise RuntimeError(TIMED_OUT) from None
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        if thread is not threading.current_thread():
            # The thread ends the workers, which ignore SIGTERM: at its end, Python would wait for them for ever.
            thread.join(patience)


def _put(ready: queue.Queue[Any], entry: tuple[Any, Exception | None], closed: threading.Event) -> None:
    while not closed.is_set():
        try:
            return ready.put(entry, timeout=0.5)
        except queue.Full:
            continue


def _raise_items(items: Iterator[Any]) -> Generator[Any, None, None]:
    try:
        for item in items:
            if isinstance(item, InvarianceError):
                raise item
            yield item
    finally:
        if isinstance(items, Generator):
            items.close()  # now, because the frame of a raised error keeps it alive


def worker_error(error: RuntimeError, options: LoopOptions) -> WorkerError | None:
    """The named error for a data worker that died or stopped; None for any other error.

    A death is noticed wherever the main process is, because a signal handler of PyTorch raises the error.
    """
    text = str(error)
    if text == TIMED_OUT:
        children = multiprocessing.active_children()
        workers = ", ".join(f"{child.pid} ({_state(child.pid)})" for child in children)
        _kill(children)
        return WorkerError(
            f"No data worker delivered a batch within {options.timeout:g} seconds. Process ids of the workers: "
            f"{workers or 'none is left'}. If one is stopped or waits for a slow disk, repair that, raise "
            "--set timeout=SECONDS, or use --set workers=0; then continue with --c."
        )
    if "DataLoader worker" in text:
        return WorkerError(
            f"A data worker died: {text.splitlines()[0]} If the machine ran out of memory, use fewer workers "
            "(--set workers=0); then continue with --c."
        )
    return None


def _kill(workers: list[multiprocessing.process.BaseProcess]) -> None:
    """End stopped workers, which ignore the loader's SIGTERM: Python would wait for them at its own end."""
    handler = signal.signal(signal.SIGCHLD, lambda *_: None)  # PyTorch's would raise an error for each of them
    try:
        for worker in workers:
            worker.kill()
            worker.join(5)
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _state(pid: int | None) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            letter = file.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "state unknown"
    return {"T": "stopped", "t": "stopped", "D": "waits for a disk", "Z": "dead"}.get(letter, "running")
