"""Three steps of every pre-training method on a small patch."""

import math
from functools import partial
from typing import Any

from tqdm import tqdm

from benchmarks.gpu.context import Context
from benchmarks.gpu.pretraining import NAMES, make_batch, make_loop, small
from nnunet_invariance.common.distributed import distributed_context
from nnunet_invariance.pretraining.engine.options import LoopOptions


def run(context: Context) -> dict[str, Any]:
    """Losses and host waits of every method, and whether all losses are finite and no step was skipped."""
    found = {name: _steps(name, small(context)) for name in NAMES}
    finite = all(math.isfinite(numbers["loss"]) and not numbers["skipped"] for numbers in found.values())
    return {"methods": found, "all_finite": finite}


def _steps(name: str, context: Context) -> dict[str, Any]:
    with distributed_context(str(context.device)) as ranks:
        loop = make_loop(name, context, ranks, LoopOptions(seed=0))
        step = partial(loop._train_step, [make_batch(name, context)], tqdm(disable=True))
        for _ in range(2 if context.on_gpu else 0):
            step()
        waits = context.host_waits(step)
        return {"loss": loop.sums.get("loss", math.nan), "skipped": loop.skipped, "host_waits": waits}
