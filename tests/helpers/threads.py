"""Runs worker pools of nnU-Net inside this process."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import pytest


@contextmanager
def threads_for_processes() -> Iterator[None]:
    """Let nnU-Net's worker pools run as threads of this process: a spawned worker would import torch first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method=None: SimpleNamespace(Pool=ThreadPool))
        yield
