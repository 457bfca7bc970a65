"""How long a run is, its learning rate over the steps, and when it ends early."""

import math
from dataclasses import dataclass

from nnunet_invariance.errors import OptionError
from nnunet_invariance.pretraining.engine.history import Row


@dataclass(frozen=True)
class LoopOptions:
    """Settings every method shares, given as flags or as ``--set field=value``.

    Attributes:
        epochs, iterations: length of the run; ``iterations`` steps an epoch.
        seed: of initialisation, data and augmentation.
        lr, lr_end: peak and last learning rate of AdamW; a cosine runs between them.
        warmup: share of the steps over which the rate rises linearly to ``lr``.
        weight_decay: of matrices and kernels; biases, norms and other vectors have none.
        grad_clip_norm: largest norm of the whole gradient.
        workers: processes that read data; 0 reads in the main process.
        grad_accum_steps: batches whose gradients are averaged into one step.
        compile: whether the method's forward pass goes through ``torch.compile``.
        patience: share of the epochs after which the run ends if the held-out loss has not fallen; 0 is never.
    """

    epochs: int = 400
    iterations: int = 250
    seed: int = 0
    lr: float = 1e-4
    lr_end: float = 1e-6
    warmup: float = 0.05
    weight_decay: float = 0.04
    grad_clip_norm: float = 3.0
    workers: int = 2
    grad_accum_steps: int = 1
    compile: bool = False
    patience: float = 0.0

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("iterations", 1), ("grad_accum_steps", 1), ("workers", 0), ("patience", 0)):
            if not getattr(self, name) >= low:
                raise OptionError(f"{name}={getattr(self, name)}: expected at least {low}. Correct it.")

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.iterations


def learning_rate(step: int, options: LoopOptions) -> float:
    """Linear warm-up, then a cosine from ``lr`` to ``lr_end``."""
    warm = max(1, round(options.warmup * options.steps))
    if step < warm:
        return options.lr * (step + 1) / warm
    share = (step - warm) / max(1, options.steps - warm)
    return options.lr_end + (options.lr - options.lr_end) * (1 + math.cos(math.pi * share)) / 2


def should_stop_early(history: list[Row], options: LoopOptions) -> bool:
    """Whether the best held-out loss is ``patience`` of the epochs old; never where no method measures one."""
    losses = [row["held_out_loss"] for row in history if "held_out_loss" in row]
    if not options.patience or not losses:
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= max(1.0, options.patience * options.epochs)
