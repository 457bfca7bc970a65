"""The held-out evaluation of a pre-training on synthetic volumes, in the precision of its training."""

import dataclasses
import math
from typing import Any

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.phases.pretraining_step import make_method
from nnunet_invariance.common.precision import SUPPORTED, Precision


def run(context: Context) -> dict[str, Any]:
    """Measures by size and precision, and whether all are finite; sizes that are no powers of two are among them."""
    found: dict[str, dict[str, float]] = {}
    sides = sorted({context.size.patch, context.size.patch * 3 // 4 if context.on_gpu else context.size.patch})
    for side in sides:
        size = dataclasses.replace(context.size, patch=side, synthesis=side)
        torch.manual_seed(0)
        method = make_method("anatomix", dataclasses.replace(context, size=size)).to(context.device).eval()
        for name in SUPPORTED[context.device.type]:
            with torch.no_grad(), Precision.choose(name, context.device).autocast():
                found[f"{side}, {name}"] = {key: float(value) for key, value in method.evaluate().items()}
    finite = all(math.isfinite(value) for measures in found.values() for value in measures.values())
    return {"measures": found, "all_finite": finite}
