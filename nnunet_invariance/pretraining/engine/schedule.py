"""The learning rate over the steps, and the rule that ends a run early."""

import math
from collections.abc import Sequence

from nnunet_invariance.pretraining.engine.history import Row
from nnunet_invariance.pretraining.engine.options import LoopOptions


def learning_rate(step: int, options: LoopOptions) -> float:
    """Linear warm-up, then a cosine from ``lr`` to ``lr_end``.

    >>> learning_rate(0, LoopOptions(epochs=1, iterations=100, lr=1.0, warmup=0.5))
    0.02
    """
    warm = max(1, round(options.warmup * options.steps))
    if step < warm:
        return options.peak_lr * (step + 1) / warm
    share = (step - warm) / max(1, options.steps - warm)
    return options.lr_end + (options.peak_lr - options.lr_end) * (1 + math.cos(math.pi * share)) / 2


def should_stop_early(history: Sequence[Row], options: LoopOptions) -> bool:
    """Whether the lowest ``held_out_loss`` is older than ``patience`` of the epochs; False if none is measured.

    >>> history = [{"held_out_loss": 1.0}, {"held_out_loss": 2.0}]
    >>> should_stop_early(history, LoopOptions(epochs=4, patience=0.25))
    True
    """
    losses = [row["held_out_loss"] for row in history if "held_out_loss" in row]
    if not options.patience or not losses:
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= max(1.0, options.patience * options.epochs)
