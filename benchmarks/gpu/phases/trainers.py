"""Three steps of every trainer on a small patch."""

import math
from typing import Any

from benchmarks.gpu.context import Context
from benchmarks.gpu.data import make_trainer, one_batch, started, use_folders
from nnunet_invariance.registry import trainers

#: Options that make the steps of small patches possible and every loss happen.
OPTIONS = {"seed": 0, "aux_ramp": 0.0, "warmup": 0.0, "num_positions": 8, "prior": 4, "equivariance_probability": 1.0}

#: Trainers whose augmentation cannot run on the device.
WITHOUT_DEVICE_FORM = ("BaselineTrainerDA5",)


def run(context: Context) -> dict[str, Any]:
    """Last losses of every trainer with both augmentations, and whether all are finite."""
    use_folders(context)
    found: dict[str, Any] = {}
    for name, entry in trainers().items():
        if context.size.trainers and name not in context.size.trainers:
            continue
        channels, form = max(entry.load().least_channels, 1), f"{name}_scratch" if entry.has_scratch_twin else name
        for augmentation in ("nnunet",) if name in WITHOUT_DEVICE_FORM else ("nnunet", "device"):
            found[f"{name}, {augmentation}"] = _losses(context, form, channels, augmentation)
    finite = all(math.isfinite(loss) for losses in found.values() for loss in losses.values())
    return {"losses": found, "all_finite": finite}


def _losses(context: Context, name: str, channels: int, augmentation: str) -> dict[str, float]:
    options = {**OPTIONS, "augmentation": augmentation}
    trainer = started(make_trainer(context, name, channels, context.size.small, **options))
    batch = one_batch(trainer)
    for _ in range(3 if context.on_gpu else 1):
        losses = trainer.train_step(batch)
    return {key: float(value) for key, value in losses.items()}
