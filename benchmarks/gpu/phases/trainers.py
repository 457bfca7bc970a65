"""Three steps of every trainer on a small patch."""

import math
from typing import Any

from benchmarks.gpu.context import Context
from benchmarks.gpu.data import make_trainer, one_batch, started, use_folders
from nnunet_invariance.registry import trainers

#: Options that make the steps of small patches possible and every loss happen.
OPTIONS = {"seed": 0, "aux_ramp": 0.0, "warmup": 0.0, "num_positions": 8, "prior": 4, "equivariance_probability": 1.0}


def run(context: Context) -> dict[str, Any]:
    """Last losses of every trainer with both augmentations; the device augments in the second step."""
    use_folders(context)
    found: dict[str, Any] = {}
    for name, entry in trainers().items():
        if context.size.trainers and name not in context.size.trainers:
            continue
        channels = max(entry.load().least_channels, 1)
        form = f"{name}_scratch" if entry.has_scratch_twin else name
        losses: dict[str, float] = {}
        for augmentation in ("nnunet", "device"):
            if augmentation == "device" and name.endswith("DA5"):
                continue  # its pipeline has no device form
            options = {**OPTIONS, "augmentation": augmentation}
            trainer = started(make_trainer(context, form, channels, context.size.small, **options))
            batch = one_batch(trainer)
            for _ in range(3 if context.on_gpu else 1):
                losses = {key: float(value) for key, value in trainer.train_step(batch).items()}
        found[name] = losses
    finite = all(math.isfinite(loss) for losses in found.values() for loss in losses.values())
    return {"losses": found, "all_finite": finite}
