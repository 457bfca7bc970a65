"""Names the rank that died or stopped when the ranks of a run lose contact."""

import threading
import time
from datetime import timedelta
from types import TracebackType

import torch.distributed as dist
from torch.distributed import distributed_c10d

from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.errors import WorkerError

#: Seconds between two heartbeats of a rank.
INTERVAL = 1.0


class RankMonitor:
    """Sends heartbeats of this rank, and limits how long collectives wait for the other ranks.

    Args:
        timeout: seconds that a collective waits. Preparing a run may take longer; the loop uses this limit.
    """

    def __init__(self, ranks: DistributedContext, timeout: float) -> None:
        self.ranks, self.timeout = ranks, timeout
        self._end = threading.Event()

    def __enter__(self) -> "RankMonitor":
        if self.ranks.world_size > 1:
            self._store = distributed_c10d._get_default_store()
            distributed_c10d._set_pg_timeout(timedelta(seconds=self.timeout), dist.group.WORLD)
            threading.Thread(target=self._send_heartbeats, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()

    def _send_heartbeats(self) -> None:
        while not self._end.wait(INTERVAL):
            self._store.set(self._key(self.ranks.rank), str(time.time()))

    @staticmethod
    def _key(rank: int) -> str:
        return f"nnunet_invariance_heartbeat_{rank}"

    def _heartbeats(self) -> list[bytes | None]:
        keys = [self._key(rank) for rank in range(self.ranks.world_size)]
        return [self._store.get(key) if self._store.check([key]) else None for key in keys]

    def error_for(self, error: RuntimeError) -> WorkerError | None:
        """The named error for a failed collective; None for an error of another kind."""
        signs = ("gloo", "Gloo", "NCCL", "Timed out waiting", "Connection closed by peer", "Connection reset by peer")
        if self.ranks.world_size == 1 or not any(sign in str(error) for sign in signs):
            return None
        before = self._heartbeats()
        time.sleep(3 * INTERVAL)
        pairs = enumerate(zip(before, self._heartbeats(), strict=True))
        silent = [str(rank) for rank, (old, new) in pairs if old == new and rank != self.ranks.rank]
        who = f"rank {', '.join(silent)} does not respond" if silent else "every rank responds, but one is slower"
        return WorkerError(
            f"Rank {self.ranks.rank} lost contact with the other ranks: {who} (limit {self.timeout:g} seconds; "
            f"{str(error).splitlines()[0]}). Look at the output of that rank for the cause; if it was only slow, raise "
            "--set timeout=SECONDS. Then continue with --c."
        )
