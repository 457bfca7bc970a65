"""What a pre-training method says of itself; everything else is the loop's."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.networks.planned import Architecture, cumulative_strides, token_stage
from nnunet_invariance.nnunet.cases import Case, Manifest
from nnunet_invariance.nnunet.planned_dataset import NETWORKS


@dataclass(frozen=True)
class Setup:
    """What the plans and the data say to a method.

    Attributes:
        architecture: planned network; output channels equal input channels.
        patch_size: voxels; spacing: mm, both in nnU-Net's axis order.
        batch_size: planned.
        unit_range: whether images are scaled to [0, 1] (else z-scored).
        cases: the volumes; none for a method that makes its own.
        channel_names: as in dataset.json.
    """

    architecture: Architecture
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    batch_size: int
    unit_range: bool
    cases: tuple[Case, ...]
    channel_names: tuple[str, ...] = ()


@dataclass
class StepOutput:
    """What one forward pass leaves.

    Attributes:
        losses: name to scalar, with gradient; the loop adds them up with :attr:`Method.loss_weights`.
        diagnostics: name to scalar without gradient, averaged over the epoch and logged.
        state: tensors that :meth:`Method.after_step` needs; means over samples, averaged where gradients accumulate.
        rows: tensors (N, ...) that it needs one by one, of any type; joined where gradients accumulate.
    """

    losses: dict[str, Tensor]
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)


def average(outputs: Sequence[StepOutput]) -> StepOutput:
    """The means of several outputs of one method and the rows of all, without gradient; a single one as it is."""
    if len(outputs) == 1:
        return outputs[0]

    def mean(part: str) -> dict[str, Tensor]:
        parts = [getattr(output, part) for output in outputs]
        return {name: torch.stack([p[name].detach() for p in parts]).mean(0) for name in parts[0]}

    rows = {name: torch.cat([output.rows[name].detach() for output in outputs]) for name in outputs[0].rows}
    return StepOutput(mean("losses"), mean("diagnostics"), mean("state"), rows)


class Method(nn.Module):
    """Base of the methods: owns ``network`` (the planned U-Net), ``heads`` and, where there is one, ``teacher``.

    Tokens are the encoder stage ``stage``, the one nearest stride 16; ``cell`` is the size in voxels of a token and
    of a mask cell. ``teacher`` has the same tensors as ``network``. All three are saved; ``heads`` holds everything
    that is trained or kept beside the network. The constructor takes a :class:`Setup` and an instance of
    :attr:`options_class`.
    """

    name: ClassVar[str]
    citation: ClassVar[str]
    options_class: ClassVar[type]
    dimensions: ClassVar[tuple[int, ...]] = (3,)
    minimum_volumes: ClassVar[int] = 1
    loop_defaults: ClassVar[Mapping[str, Any]] = {}  # of LoopOptions, where the method's differ
    minimum_channels: ClassVar[int] = 1
    networks: ClassVar[tuple[str, ...]] = NETWORKS
    #: Whether a case may have a constant channel in place of a missing modality.
    missing_channels: ClassVar[bool] = False
    #: Ends of the names of parameters that are not decayed although they are matrices.
    without_decay: ClassVar[tuple[str, ...]] = ()
    pretrained: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    reads_cases: ClassVar[bool] = True  # else it makes its own images, of one channel

    network: nn.Module
    teacher: nn.Module | None
    heads: nn.Module
    loss_weights: dict[str, float]
    cell: tuple[int, ...]
    prepared: dict[str, str]

    def __init__(self, setup: Setup, options: Any) -> None:
        super().__init__()
        self.setup, self.options = setup, options
        self.prepared = {}
        self.network = self.build_network()
        if hasattr(self.network, "decoder"):
            # only the full-resolution output is used; DDP wants no idle parameters
            self.network.decoder.seg_layers[:-1].requires_grad_(False)
        strides = self.network.encoder.strides
        self.stage = token_stage(strides)
        self.cell = cumulative_strides(strides)[self.stage]

    def describe(self) -> str:
        """What the log says of the method at the start."""
        return f"tokens of stride {self.cell}"

    @property
    def architecture(self) -> Architecture:
        """What the header of a checkpoint says of ``network``."""
        return self.setup.architecture

    def build_network(self) -> nn.Module:
        """The network that is pre-trained, with an encoder and a decoder as nnU-Net plans them."""
        return self.setup.architecture.build()

    def prepare(self, manifest: Manifest, folder: Path, group: DistributedContext, resume: bool) -> None:
        """Called on every rank before anything is written; reads, or makes on the first, what is beside ``folder``.

        What ``prepared`` then says is kept in the checkpoint, and must be the same when the run is continued.
        """

    @abstractmethod
    def dataset(self, steps: int, seed: int, rank: int) -> Dataset:
        """The batches: item ``step`` is a pure function of seed, rank and step."""

    @abstractmethod
    def make_views(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Turn a batch, already on the device, into what ``forward`` takes. No gradient."""

    @abstractmethod
    def forward(self, views: dict[str, Tensor], progress: float) -> StepOutput:
        """The losses of one step; ``progress`` is the share of the run that is done, in [0, 1)."""

    def after_step(self, output: StepOutput, progress: float) -> None:
        """Called after every optimiser step: EMA, centres."""

    def evaluate(self) -> dict[str, float]:
        """Measurements on held-out data, taken after every epoch on every rank, in evaluation mode; none by default.

        They must not draw from the global generators, or a continued run would differ.
        """
        return {}

    def warnings(self, diagnostics: Mapping[str, float]) -> list[str]:
        """What an epoch's mean diagnostics give reason to warn of."""
        return []
