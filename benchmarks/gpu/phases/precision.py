"""Training curves of pre-training in each precision of the device."""

from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.gpu.context import Context
from benchmarks.gpu.phases.pretraining_step import make_batch, make_method
from nnunet_invariance.common.distributed import distributed_context
from nnunet_invariance.common.precision import SUPPORTED
from nnunet_invariance.pretraining.engine.loop import Loop
from nnunet_invariance.pretraining.engine.options import LoopOptions

METHODS = ("mae", "alice")


def run(context: Context) -> dict[str, Any]:
    """Mean loss of the last third of a short run on one batch, and the greatest relative difference to float32."""
    losses: dict[str, dict[str, float]] = {}
    for name in METHODS:
        losses[name] = {precision: _last_loss(name, precision, context) for precision in SUPPORTED[context.device.type]}
    differences = [abs(loss / runs["fp32"] - 1) for runs in losses.values() for loss in runs.values()]
    return {"losses": losses, "largest_difference": max(differences)}


def _last_loss(name: str, precision: str, context: Context) -> float:
    steps = context.size.curve
    small = replace(context, size=replace(context.size, patch=context.size.small))
    torch.manual_seed(0)
    with distributed_context(str(context.device)) as ranks:
        options = LoopOptions(epochs=1, iterations=steps, seed=0, precision=precision)
        loop = Loop(make_method(name, small), options, ranks, context.work, {})
        generator = torch.Generator().manual_seed(0)
        batch = make_batch(name, small)
        batch["image"] = torch.rand(batch["image"].shape, generator=generator)
        curve = []
        for _ in range(steps):
            before = loop.sums.get("loss", 0.0)
            loop._train_step([{**batch, "keys": ["a", "b"]}], tqdm(disable=True))
            curve.append(loop.sums["loss"] - before)
    last = curve[-max(1, steps // 3) :]
    return sum(last) / len(last)
