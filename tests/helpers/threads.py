"""Runs worker pools of nnU-Net inside this process."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import pytest


@contextmanager
def threads_for_processes() -> Iterator[None]:
    """Run nnU-Net's worker pools as threads of this process, because a spawned worker first has to import torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method=None: SimpleNamespace(Pool=ThreadPool))
        yield
