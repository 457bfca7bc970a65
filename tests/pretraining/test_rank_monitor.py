"""The monitor names the rank that died or stopped, and only for errors of collectives."""

import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.pretraining.engine import rank_monitor
from nnunet_invariance.pretraining.engine.rank_monitor import RankMonitor

LOST = RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4711\nmore")


@pytest.fixture(autouse=True)
def limits(monkeypatch) -> list[timedelta]:
    """A store in this process in place of torchrun's; the timeouts that the monitors set."""
    store, limits = dist.HashStore(), []
    monkeypatch.setattr(rank_monitor, "INTERVAL", 0.02)
    monkeypatch.setattr(distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(distributed_c10d, "_set_pg_timeout", lambda timeout, group: limits.append(timeout))
    return limits


def monitor(rank: int = 0, size: int = 3) -> RankMonitor:
    return RankMonitor(DistributedContext(rank, size, torch.device("cpu")), timeout=7)


def test_the_silent_rank_is_named_with_the_limit_and_the_remedy(limits):
    with monitor() as first, monitor(2):
        assert [limit.total_seconds() for limit in limits] == [7, 7]
        message = str(first.error_for(LOST))
    assert message.startswith("Rank 0 lost contact with the other ranks: rank 1 does not respond (limit 7 seconds; ")
    assert "Connection closed by peer [127.0.0.1]:4711)" in message
    assert message.endswith("raise --set timeout=SECONDS. Then continue with --c.")


def test_a_rank_that_stops_sending_is_silent_and_a_slow_one_is_not():
    with monitor(0) as first, monitor(2):
        with monitor(1):
            assert "every rank responds, but one is slower" in str(first.error_for(LOST))
        time.sleep(0.06)  # its last heartbeat may still be on the way
        assert "rank 1 does not respond" in str(first.error_for(LOST))


def test_errors_of_another_kind_and_single_ranks_are_left_alone():
    with monitor() as first:
        assert first.error_for(RuntimeError("CUDA out of memory")) is None
    before = threading.active_count()
    with monitor(size=1) as alone:
        assert alone.error_for(LOST) is None
        assert threading.active_count() == before
