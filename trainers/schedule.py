"""Learning-rate schedule per parameter group, and the ramp of a loss weight."""

from collections.abc import Sequence

from torch.optim import Optimizer


class WarmupPolySchedule:
    r"""nnU-Net's polynomial decay with a linear warm-up, with a base learning rate for each parameter group.

    .. math:: \eta_g(e) = \eta_g \, (1 - e / E)^{0.9} \, \min(1, (e + 1) / W_g), \quad 0 \text{ while } e < F_g

    nnU-Net's own schedules set one rate for all groups. E is the number of epochs, W_g the length of the warm-up.

    Args:
        base_rates: :math:`\eta_g` of each group of the optimiser.
        frozen_epochs: :math:`F_g` of each group.
        warmup: :math:`W_g / E` of each group, in [0, 1].
        epochs: E, at least 1.

    >>> import torch
    >>> optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1.0)
    >>> WarmupPolySchedule(optimizer, [1.0], [0], [0.5], 4).step(0)
    >>> optimizer.param_groups[0]["lr"]
    0.5
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_rates: Sequence[float],
        frozen_epochs: Sequence[int],
        warmup: Sequence[float],
        epochs: int,
    ) -> None:
        self.optimizer = optimizer
        self.base_rates = base_rates
        self.frozen_epochs = frozen_epochs
        self.epochs = epochs
        self.warmup = warmup

    def step(self, epoch: int) -> None:
        """Set the learning rates of an epoch, counted from 0."""
        decay = (1 - epoch / self.epochs) ** 0.9
        groups = zip(self.optimizer.param_groups, self.base_rates, self.frozen_epochs, self.warmup, strict=True)
        for group, base_rate, frozen, warmup in groups:
            rise = ramp((epoch + 1) / self.epochs, warmup)
            group["lr"] = 0.0 if epoch < frozen else base_rate * decay * rise


def ramp(progress: float, fraction: float) -> float:
    """Rise linearly from 0 to 1 over a fraction of the run; ``progress`` and ``fraction`` are in [0, 1].

    >>> ramp(0.25, 0.5)
    0.5
    """
    return 1.0 if progress >= fraction else progress / fraction
