"""Groups of parameters with a learning rate for each."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from nnunet_invariance.trainers.schedule import WarmupPolySchedule


class Group(NamedTuple):
    """Parameters, their base rate, the epochs in which they wait, the share of the run over which their rate rises
    linearly, and their weight decay (None: everybody's)."""

    parameters: Sequence[nn.Parameter]
    rate: float
    frozen_epochs: int = 0
    warmup: float = 0.0
    decay: float | None = None


def without(parameters: Iterable[nn.Parameter], others: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those that are not among the others, in their order."""
    known = {id(parameter) for parameter in others}
    return [parameter for parameter in parameters if id(parameter) not in known]


def make_sgd(
    groups: Sequence[Group], weight_decay: float, epochs: int
) -> tuple[torch.optim.Optimizer, WarmupPolySchedule]:
    """nnU-Net's SGD over the groups that are not empty, and the schedule of their rates."""
    groups = [group for group in groups if group.parameters]
    entries: list[dict[str, Any]] = [{"params": list(group.parameters)} for group in groups]
    for entry, group in zip(entries, groups, strict=True):
        entry["weight_decay"] = weight_decay if group.decay is None else group.decay
    optimizer = torch.optim.SGD(entries, groups[0].rate, 0.99, nesterov=True)
    rates, frozen, warmup = ([getattr(g, name) for g in groups] for name in ("rate", "frozen_epochs", "warmup"))
    return optimizer, WarmupPolySchedule(optimizer, rates, frozen, warmup, epochs)
