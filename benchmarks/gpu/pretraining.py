"""Pre-training methods for the stock U-Net, and batches for them, without cases."""

from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.data import planned_network
from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.pretraining.engine.loop import Loop
from nnunet_invariance.pretraining.engine.method import Method, Setup, load_method
from nnunet_invariance.pretraining.engine.options import LoopOptions
from nnunet_invariance.registry import METHODS, get_method

NAMES = tuple(entry.name for entry in METHODS)
#: Options that fit every size and need no file.
OPTIONS: dict[str, dict[str, Any]] = {
    "anatomix": {"held_out": 1},
    "puir_translation": {"initial_weights": "none"},
}
#: Methods whose batches are numbers of synthetic volumes.
SYNTHETIC = ("anatomix",)


def small(context: Context) -> Context:
    """The same context with the patch of short trainings."""
    return replace(context, size=replace(context.size, patch=context.size.small))


def make_method(name: str, context: Context) -> Method:
    """A method for the stock U-Net."""
    side, channels = context.size.patch, get_method(name).least_channels
    setup = Setup(planned_network(context, channels, channels), (side,) * 3, (1.0, 1.0, 1.0), 2, False, ())
    options = dict(OPTIONS.get(name, {}))
    if name in SYNTHETIC:
        options |= {"volume": max(32, side), "num_positions": min(512, side)}
    kind = load_method(get_method(name))
    return kind(setup, kind.options_class(**options))


def make_loop(name: str, context: Context, ranks: DistributedContext, options: LoopOptions) -> Loop:
    """The loop of a method just before its first step."""
    torch.manual_seed(0)
    return Loop(make_method(name, context), options, ranks, context.work, {})


def make_batch(name: str, context: Context) -> dict[str, Any]:
    """What the method's data set gives, on the CPU: crops, or the number of two synthetic volumes."""
    keys = ["a", "b"]
    if name in SYNTHETIC:
        return {"seed": torch.tensor(0), "number": torch.tensor([0, 1]), "cut": torch.tensor(0), "keys": keys}
    samples, channels = 4 if name == "sam" else 2, get_method(name).least_channels  # sam: two views of two volumes
    image = torch.randn(samples, channels, *(context.size.patch,) * 3, generator=torch.Generator().manual_seed(0))
    batch = {"image": image, "valid": torch.ones_like(image[:, :1], dtype=torch.bool), "keys": keys}
    return {**batch, "score": torch.ones(1), "case": torch.arange(2), "origin": torch.zeros(samples, 3)}
