"""A training step of our trainers against nnUNetTrainer's, on one batch that is loaded once."""

import os
import statistics
from functools import partial
from typing import Any

from benchmarks.gpu.context import Context, peak_memory
from benchmarks.gpu.data import make_trainer, one_batch, started, use_folders

STOCK = "nnUNetTrainer"
OPTIONS: dict[str, Any] = {"seed": 0, "aux_ramp": 0.0, "num_positions": 8, "head": "stock"}
#: Trainer and options of each variant.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    STOCK: (STOCK, {}),
    "without auxiliary losses": ("AliceTrainer_scratch", {"aux": False}),
    "two views": ("AliceTrainer_scratch", {"num_positions": 256}),
    "summed head": ("MAETrainer_scratch", {"head": "summed"}),
}


def run(context: Context, compiled: bool = False) -> dict[str, Any]:
    """Seconds per step of each variant, the median ratio to nnUNetTrainer over the rounds, and waits of the host."""
    use_folders(context)
    os.environ["nnUNet_compile"] = "t" if compiled else "f"
    calls, waits = {}, {}
    for variant, (name, options) in VARIANTS.items():
        trainer = started(make_trainer(context, name, **{**OPTIONS, **options}))
        calls[variant] = partial(trainer.train_step, one_batch(trainer))
    taken = context.compare(calls)
    for variant, call in calls.items():
        waits[variant] = context.host_waits(call)
    ratios = {
        variant: statistics.median(own / stock for own, stock in zip(seconds, taken[STOCK], strict=True))
        for variant, seconds in taken.items()
    }
    return {
        "seconds": {variant: statistics.median(seconds) for variant, seconds in taken.items()},
        "ratio": ratios,
        "host_waits": waits,
        **peak_memory(context),
    }
