"""Groups of parameters, each with its own learning rate."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from nnunet_invariance.trainers.schedule import WarmupPolySchedule


class ParameterGroup(NamedTuple):
    """Parameters that share a learning rate and its schedule.

    Attributes:
        rate: base learning rate.
        frozen_epochs: number of epochs for which the rate is 0.
        warmup: fraction of the run over which the rate rises linearly.
        weight_decay: None for that of the optimiser.

    >>> ParameterGroup([], 0.01).warmup
    0.0
    """

    parameters: Sequence[nn.Parameter]
    rate: float
    frozen_epochs: int = 0
    warmup: float = 0.0
    weight_decay: float | None = None


def exclude(parameters: Iterable[nn.Parameter], others: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters that are not among the others, in their order."""
    known = {id(parameter) for parameter in others}
    return [parameter for parameter in parameters if id(parameter) not in known]


def make_sgd(
    groups: Sequence[ParameterGroup], weight_decay: float, epochs: int
) -> tuple[torch.optim.Optimizer, WarmupPolySchedule]:
    """Build nnU-Net's SGD over the groups that are not empty, and the schedule of their learning rates."""
    groups = [group for group in groups if group.parameters]
    entries: list[dict[str, Any]] = [
        {
            "params": list(group.parameters),
            "weight_decay": weight_decay if group.weight_decay is None else group.weight_decay,
        }
        for group in groups
    ]
    optimizer = torch.optim.SGD(entries, groups[0].rate, 0.99, nesterov=True)
    schedule = WarmupPolySchedule(
        optimizer,
        [group.rate for group in groups],
        [group.frozen_epochs for group in groups],
        [group.warmup for group in groups],
        epochs,
    )
    return optimizer, schedule
