"""A step of the pre-training loop against the forward and backward pass of its method on the same views."""

import statistics
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.gpu.context import Context
from benchmarks.gpu.pretraining import SYNTHETIC, make_batch, make_loop
from nnunet_invariance.common.distributed import distributed_context
from nnunet_invariance.pretraining.engine.options import LoopOptions

#: Methods whose step is timed.
METHODS = ("mae", "alice", "anatomix")


def run(context: Context) -> dict[str, Any]:
    """Seconds of a step and of the bare passes, their ratio, and waits of the host in a step."""
    result = {name: _measure(name, context) for name in METHODS}
    largest = max(numbers["ratio"] for numbers in result.values())
    waits = [numbers["host_waits"] for name, numbers in result.items() if name not in SYNTHETIC]
    return {"methods": result, "largest_ratio": largest, "most_host_waits": max(waits) if context.on_gpu else None}


def _measure(name: str, context: Context) -> dict[str, Any]:
    with distributed_context(str(context.device)) as ranks:
        loop = make_loop(name, context, ranks, LoopOptions(seed=0))
        batch, bar = make_batch(name, context), tqdm(disable=True)
        moved = {key: value.to(context.device) for key, value in batch.items() if isinstance(value, torch.Tensor)}
        views = loop.method.make_views(moved, torch.Generator(context.device).manual_seed(0))

        def bare() -> None:
            loop.optimizer.zero_grad(set_to_none=True)
            with loop.precision.autocast():
                losses = loop.method(views, 0.5).losses
            torch.stack([loop.method.loss_weights[key] * value for key, value in losses.items()]).sum().backward()

        def step() -> None:
            loop._train_step([batch], bar)

        taken = context.compare({"step": step, "bare": bare})
        return {
            **{key: statistics.median(values) for key, values in taken.items()},
            "ratio": statistics.median(a / b for a, b in zip(taken["step"], taken["bare"], strict=True)),
            "host_waits": context.host_waits(step),
        }
