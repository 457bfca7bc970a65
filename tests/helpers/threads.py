"""Runs worker pools inside this process, because a spawned worker first has to import torch."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import pytest

from nnunet_invariance.nnunet import unlabelled_images


@contextmanager
def threads_for_processes() -> Iterator[None]:
    """Run nnU-Net's worker pools as threads of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method=None: SimpleNamespace(Pool=ThreadPool))
        yield


def preprocess_scans_in_threads(patch: pytest.MonkeyPatch) -> None:
    """Let threads of this process preprocess the scans of a folder."""
    patch.setattr(unlabelled_images, "ProcessPoolExecutor", lambda workers, **_: ThreadPoolExecutor(workers))
