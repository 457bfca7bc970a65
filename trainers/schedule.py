"""Learning rates per parameter group, and the ramp of a loss weight."""

from collections.abc import Sequence

from torch.optim import Optimizer


class WarmupPolySchedule:
    r"""nnU-Net's polynomial decay with a linear warm-up, on each parameter group's own base rate.

    .. math:: \eta_g(e) = \eta_g \, (1 - e / E)^{0.9} \, \min(1, (e + 1) / W_g), \quad 0 \text{ while } e < F_g

    nnU-Net's schedules write one rate into all groups. E is the number of epochs, W_g that of a group's warm-up.

    Args:
        base_rates: :math:`\eta_g` of each group of the optimiser.
        frozen_epochs: :math:`F_g` of each group.
        warmup: :math:`W_g / E` of each group, in [0, 1].
        epochs: E, at least 1.
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
        """Set the rates of an epoch, counted from 0."""
        decay = (1 - epoch / self.epochs) ** 0.9
        groups = zip(self.optimizer.param_groups, self.base_rates, self.frozen_epochs, self.warmup, strict=True)
        for group, base_rate, frozen, warmup in groups:
            rise = ramp((epoch + 1) / self.epochs, warmup)
            group["lr"] = 0.0 if epoch < frozen else base_rate * decay * rise


def ramp(progress: float, share: float) -> float:
    """0 at the start of a run, 1 from ``share`` of it on, linear between; ``progress`` in [0, 1]."""
    return 1.0 if progress >= share else progress / share
