"""A step of the pre-training loop against the forward and backward pass of its method on the same views."""

import statistics
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.gpu.context import Context
from benchmarks.gpu.data import planned_network
from nnunet_invariance.common.distributed import distributed_context
from nnunet_invariance.pretraining.engine.loop import Loop
from nnunet_invariance.pretraining.engine.method import Method, Setup, load_method
from nnunet_invariance.pretraining.engine.options import LoopOptions
from nnunet_invariance.registry import get_method

#: Methods whose step is timed, and options that fit every size.
METHODS: dict[str, dict[str, Any]] = {"mae": {}, "alice": {}, "anatomix": {"held_out": 1}}


def make_method(name: str, context: Context) -> Method:
    """A method for the stock U-Net, without cases."""
    side = context.size.patch
    setup = Setup(planned_network(context, outputs=1), (side,) * 3, (1.0, 1.0, 1.0), 2, False, ())
    options = dict(METHODS[name])
    if name == "anatomix":
        options |= {"volume": max(32, side), "num_positions": min(512, side)}
    kind = load_method(get_method(name))
    return kind(setup, kind.options_class(**options))


def make_batch(name: str, context: Context) -> dict[str, Any]:
    """What the method's data set gives, on the CPU: two crops, or the number of two synthetic volumes."""
    if name == "anatomix":
        return {"seed": torch.tensor(0), "number": torch.tensor([0, 1]), "cut": torch.tensor(0)}
    image = torch.randn(2, 1, *(context.size.patch,) * 3)
    batch = {"image": image, "valid": torch.ones_like(image, dtype=torch.bool)}
    return {**batch, "score": torch.ones(1)} if name == "alice" else batch


def run(context: Context) -> dict[str, Any]:
    """Seconds of a step and of the bare passes, their ratio, and waits of the host in a step."""
    result = {name: _measure(name, context) for name in METHODS}
    return {"methods": result, "largest_ratio": max(numbers["ratio"] for numbers in result.values())}


def _measure(name: str, context: Context) -> dict[str, Any]:
    torch.manual_seed(0)
    with distributed_context(str(context.device)) as ranks:
        loop = Loop(make_method(name, context), LoopOptions(seed=0), ranks, context.work, {})
        batch, bar = make_batch(name, context), tqdm(disable=True)
        moved = {key: value.to(context.device) for key, value in batch.items()}
        views = loop.method.make_views(moved, torch.Generator(context.device).manual_seed(0))

        def bare() -> None:
            loop.optimizer.zero_grad(set_to_none=True)
            with loop.precision.autocast():
                losses = loop.method(views, 0.5).losses
            torch.stack([loop.method.loss_weights[key] * value for key, value in losses.items()]).sum().backward()

        def step() -> None:
            loop._train_step([{**batch, "keys": ["a", "b"]}], bar)

        taken = context.compare({"step": step, "bare": bare})
        return {
            **{key: statistics.median(values) for key, values in taken.items()},
            "ratio": statistics.median(a / b for a, b in zip(taken["step"], taken["bare"], strict=True)),
            "host_waits": context.host_waits(step),
        }
