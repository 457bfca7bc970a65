"""What a pre-training method says of itself; everything else is the loop's."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


@dataclass
class StepOutput:
    """What one forward pass leaves.

    Attributes:
        losses: name to scalar, with gradient; the loop adds them up with :attr:`Method.loss_weights`.
        diagnostics: name to scalar without gradient, averaged over the epoch and logged.
        state: tensors that :meth:`Method.after_step` needs.
    """

    losses: dict[str, Tensor]
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module):
    """Base of the methods: owns ``network`` (the planned U-Net), ``heads`` and, where there is one, ``teacher``.

    ``teacher`` has the same tensors as ``network``. All three are saved; ``heads`` holds everything that is trained or
    kept beside the network.
    """

    name: ClassVar[str]
    citation: ClassVar[str]
    dimensions: ClassVar[tuple[int, ...]] = (3,)
    minimum_volumes: ClassVar[int] = 1
    pretrained: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    network: nn.Module
    teacher: nn.Module | None
    heads: nn.Module
    loss_weights: dict[str, float]

    @abstractmethod
    def source(self, steps: int, seed: int, rank: int) -> Dataset:
        """The batches: item ``step`` is a pure function of seed, rank and step."""

    @abstractmethod
    def make_views(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Turn a batch, already on the device, into what ``forward`` takes. No gradient."""

    @abstractmethod
    def forward(self, views: dict[str, Tensor], progress: float) -> StepOutput:
        """The losses of one step; ``progress`` is the share of the run that is done, in [0, 1)."""

    def after_step(self, output: StepOutput, progress: float) -> None:
        """Called after every optimiser step: EMA, centres."""

    def warnings(self, diagnostics: Mapping[str, float]) -> list[str]:
        """What an epoch's mean diagnostics give reason to warn of."""
        return []
