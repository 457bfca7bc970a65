"""Training curves of pre-training in each precision of the device."""

from typing import Any

from tqdm import tqdm

from benchmarks.gpu.context import Context
from benchmarks.gpu.pretraining import make_batch, make_loop, small
from nnunet_invariance.common.distributed import distributed_context
from nnunet_invariance.common.precision import SUPPORTED
from nnunet_invariance.pretraining.engine.options import LoopOptions

METHODS = ("mae", "alice", "puir")


def run(context: Context) -> dict[str, Any]:
    """Mean loss of the last third of a short run on one batch, and the greatest relative difference to float32."""
    losses: dict[str, dict[str, float]] = {}
    for name in METHODS:
        losses[name] = {
            precision: _last_loss(name, precision, small(context)) for precision in SUPPORTED[context.device.type]
        }
    differences = [abs(loss / runs["fp32"] - 1) for runs in losses.values() for loss in runs.values()]
    return {"losses": losses, "largest_difference": max(differences)}


def _last_loss(name: str, precision: str, context: Context) -> float:
    steps = context.size.curve
    with distributed_context(str(context.device)) as ranks:
        loop = make_loop(name, context, ranks, LoopOptions(epochs=1, iterations=steps, seed=0, precision=precision))
        batch, before = make_batch(name, context), dict(loop.sums)
        for step in range(steps):
            if step == steps - max(1, steps // 3):
                before = dict(loop.sums)
            loop._train_step([batch], tqdm(disable=True))
    # A step that overflows in float16 adds nothing to the sums.
    loss, count = (loop.sums[key] - before.get(key, 0.0) for key in ("loss", "count"))
    return loss / count
