"""Interface of a pre-training method; the loop does the rest.

The loop (:mod:`~nnunet_invariance.pretraining.engine.loop`) does this in every step, and checks each result
(:mod:`~nnunet_invariance.pretraining.engine.contract`); a violation is a :class:`.MethodContractError`:

1. It takes a **batch** from :meth:`Method.dataset`: a dict with ``keys``, the list of the names of its cases, and
   otherwise tensors only. The loop keeps ``keys`` and moves every tensor to the device.
2. :meth:`Method.make_views` turns the batch into the input of ``forward``, without gradient. All randomness comes from
   the generator, which is on the device and seeded by seed, step and rank, as torch's global generators are.
3. :meth:`Method.forward` returns a :class:`StepOutput`. Its **losses** are scalars with a gradient, one for every name
   in ``loss_weights`` whose weight is not 0. Every parameter with ``requires_grad`` gets a gradient in every step,
   because several ranks wait for it. A loss is a mean over samples of means within a sample, so that the mean over
   ranks is the loss of the joined batch. **Diagnostics** are scalars without gradient, on any device.
4. The loop adds up the weighted losses, averages gradients over ranks and accumulated batches, clips them and steps. A
   step whose loss or gradient is not finite changes nothing: it is skipped, counted and named with its ``keys``.
5. :meth:`Method.after_step` updates what has no gradient: the teacher, centers, queues. Its ``output`` is detached.

The network, the heads and the teacher are saved in every checkpoint, so a method keeps no state anywhere else.
"""

import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import Dataset

from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.errors import MethodContractError
from nnunet_invariance.networks.planned import Architecture, cumulative_strides, token_stage
from nnunet_invariance.nnunet.cases import Case, Manifest
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.pretraining.engine.options import LoopOptions, MethodOptions
from nnunet_invariance.pretraining.engine.panels import Panel
from nnunet_invariance.registry import MethodEntry

#: What ``make_views`` returns; the loop only hands it to ``forward``.
Views = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """The planned network and the data that a method is built for.

    Attributes:
        architecture: planned network; output channels equal input channels.
        patch_size: voxels, in nnU-Net's axis order.
        spacing: mm per voxel, in nnU-Net's axis order.
        batch_size: planned batch size.
        unit_range: whether images are scaled to [0, 1] (otherwise they are z-scored).
        cases: the volumes; empty if the method makes its own images.
        channel_names: as in dataset.json.
        steps: optimiser steps of the run, from which some options follow.

    >>> planned = Architecture("package.UNet", {"n_stages": 4}, (), 1, 1)
    >>> Setup(planned, (32, 32, 32), (1.0, 1.0, 1.0), batch_size=2, unit_range=False, cases=()).channel_names
    ()
    """

    architecture: Architecture
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    batch_size: int
    unit_range: bool
    cases: tuple[Case, ...]
    channel_names: tuple[str, ...] = ()
    steps: int = LoopOptions().steps


@dataclass(frozen=True)
class NetworkPreset:
    """A network that a method pre-trains without a data set.

    Attributes:
        architecture: the ``architecture`` entry of plans.
        patch_size: voxels.
        normalization_scheme: how nnU-Net will normalise the images that the network is later applied to.
        batch_size: as if it were planned.

    >>> NetworkPreset({"network_class_name": "package.UNet"}, (128, 128, 128), "ZScoreNormalization").batch_size
    2
    """

    architecture: Mapping[str, Any]
    patch_size: tuple[int, int, int]
    normalization_scheme: str
    batch_size: int = 2


@dataclass
class StepOutput:
    """The result of one forward pass; the contract of its parts is in the module's docstring.

    Attributes:
        losses: scalars with gradient by name; the loop weights them by :attr:`Method.loss_weights`.
        diagnostics: scalars without gradient by name; logged as means over the epoch.
        state: tensors for :meth:`Method.after_step` that are means over samples; averaged over accumulated batches.
        rows: tensors (N, ...) for :meth:`Method.after_step`, one row per sample; concatenated over accumulated batches.

    >>> StepOutput({"reconstruction": torch.tensor(0.5)}).diagnostics
    {}
    """

    losses: dict[str, Tensor]
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)


def average(outputs: Sequence[StepOutput]) -> StepOutput:
    """The detached means of the outputs of accumulated batches, and their concatenated rows.

    >>> average([StepOutput({"a": torch.tensor(1.0)}), StepOutput({"a": torch.tensor(3.0)})]).losses
    {'a': tensor(2.)}
    """

    def mean(part: str) -> dict[str, Tensor]:
        parts = [getattr(output, part) for output in outputs]
        if len(parts) == 1:
            return {name: value.detach() for name, value in parts[0].items()}
        return {name: torch.stack([p[name].detach() for p in parts]).mean(0) for name in parts[0]}

    rows = {name: torch.cat([output.rows[name].detach() for output in outputs]) for name in outputs[0].rows}
    return StepOutput(mean("losses"), mean("diagnostics"), mean("state"), rows)


class Method(nn.Module, ABC):
    """Base class of the pre-training methods; the module's docstring describes the contract.

    A subclass sets ``name``, ``citation`` and ``options_class``, builds its parts in ``__init__`` after
    ``super().__init__(setup, options)``, and implements :meth:`dataset`, :meth:`make_views` and :meth:`forward`. Its
    :class:`~nnunet_invariance.registry.MethodEntry` says which networks, dimensions and channels it supports.

    Attributes:
        network: the planned U-Net, built by the constructor; this is what is pre-trained.
        heads: modules that are not part of the network; the constructor sets an empty one.
        teacher: a network with the same tensors as ``network``, or None (the default). It stays in evaluation mode.
        loss_weights: weight of every loss by name.
        stage: index of the token stage, the encoder stage whose stride is nearest 16 voxels.
        cell: size in voxels of a token, and of a mask cell.
        prepared: facts by name that must be the same if the run is continued; see :meth:`prepare`.

    Raises:
        MethodContractError: when a subclass is defined without its class attributes, or with an option that has the
            name of an option of the loop.
    """

    name: ClassVar[str]
    #: The publication, with ``arXiv <id>``.
    citation: ClassVar[str]
    options_class: ClassVar[type[MethodOptions]]
    #: The smallest number of usable volumes.
    least_volumes: ClassVar[int] = 1
    #: The method's own learning rate or weight decay, for :meth:`LoopOptions.resolve`.
    loop_defaults: ClassVar[Mapping[str, float]] = {}
    #: Whether a case may have a constant channel instead of a missing modality.
    allows_missing_channels: ClassVar[bool] = False
    #: Endings of the names of matrices that have no weight decay.
    no_weight_decay: ClassVar[tuple[str, ...]] = ()
    #: The parts of ``network`` that a trainer may load.
    pretrained: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    #: Networks that need no data set, by name.
    network_presets: ClassVar[Mapping[str, NetworkPreset]] = {}
    #: Plain titles of losses and diagnostics in the picture of the curves, with the good direction.
    titles: ClassVar[Mapping[str, str]] = {}
    #: Options that do not change the training, and so may differ when a run is continued.
    output_options: ClassVar[frozenset[str]] = frozenset()

    options: Any
    network: Any  # nnU-Net's networks have no common class
    heads: Any  # a subclass may annotate its own class
    teacher: Any
    loss_weights: dict[str, float]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for attribute in ("name", "citation", "options_class"):
            if not hasattr(cls, attribute):
                raise MethodContractError(f"The method {cls.__name__} has no class attribute {attribute!r}. Set it.")
        if not (isinstance(cls.options_class, type) and issubclass(cls.options_class, MethodOptions)):
            msg = f"The method {cls.__name__} has options_class={cls.options_class!r}; expected a subclass of "
            raise MethodContractError(f"{msg}MethodOptions. Derive the dataclass of its options from it.")
        own, shared = ({f.name for f in dataclasses.fields(kind)} for kind in (cls.options_class, LoopOptions))
        if both := sorted(own & shared):
            msg = f"The options {', '.join(both)} of the method {cls.__name__} have names of options of the loop"
            raise MethodContractError(f"{msg}; expected other names. Rename them in {cls.options_class.__name__}.")

    def __init__(self, setup: Setup, options: MethodOptions) -> None:
        super().__init__()
        self.setup, self.options = setup, options.resolve(setup.steps)
        self.prepared: dict[str, str] = {}
        self.loss_weights = {}
        self.network = self.build_network()
        self.heads = nn.Identity()
        self.teacher = None
        if hasattr(self.network, "decoder"):
            # only the full-resolution output is used, and every trained parameter must get a gradient
            self.network.decoder.seg_layers[:-1].requires_grad_(False)
        strides = self.network.encoder.strides
        self.stage = token_stage(strides)
        self.cell = cumulative_strides(strides)[self.stage]

    # ---- what a method implements ------------------------------------------------------------------------------------

    @abstractmethod
    def dataset(self, steps: int, seed: int, rank: int) -> Dataset:
        """A map-style data set whose item ``step`` is a batch and a pure function of seed, rank and step."""

    @abstractmethod
    def make_views(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Views:
        """Turn a batch on the device into the input of ``forward``; use ``torch.no_grad``."""

    @abstractmethod
    def forward(self, views: Views, progress: float) -> StepOutput:
        """The losses of one batch; ``progress`` is the fraction of the run that is done, in [0, 1)."""

    # ---- what a method may override ----------------------------------------------------------------------------------

    @classmethod
    def check_dataset(cls, planned: PlannedDataset) -> None:
        """Refuse a data set for a reason that the registry does not know; called before anything else is done.

        Raises:
            InvarianceError: one of its kinds.
        """

    @classmethod
    def check_files(cls, options: MethodOptions, folder: Path, resume: bool) -> None:
        """Refuse options that name a missing file; called before the cases are inspected, which may take hours.

        Raises:
            InvarianceError: one of its kinds.
        """

    def describe(self) -> str:
        """One line for the log at the start."""
        return f"tokens of stride {self.cell}"

    @property
    def architecture(self) -> Architecture:
        """The architecture of ``network``, for the header of the checkpoint."""
        return self.setup.architecture

    def build_network(self) -> nn.Module:
        """Build ``network``: an encoder and a decoder as nnU-Net plans them."""
        return self.setup.architecture.build()

    def prepare(self, manifest: Manifest, folder: Path, group: DistributedContext, resume: bool) -> None:
        """Read or make further input; called on every rank before the run's ``folder`` is touched.

        Facts in ``prepared`` are saved in the checkpoint and compared when the run is continued.
        """

    def after_step(self, output: StepOutput, progress: float) -> None:
        """Update what has no gradient; called after every optimiser step that was not skipped."""

    def evaluate(self) -> dict[str, float]:
        """Measure on held-out data after every epoch, on every rank, in evaluation mode without gradient.

        The value ``held_out_loss``, if there is one, is that of :attr:`LoopOptions.patience`. Do not use the global
        generators: a continued run would differ.
        """
        return {}

    def problems(self, diagnostics: Mapping[str, float]) -> list[str]:
        """Signs in the means of an epoch that the run learns nothing, such as a collapse, each with its remedy.

        After the first tenth of the steps, they are errors in the log and in the picture of the curves. The run
        continues, because other losses may learn.
        """
        return []

    def picture(self, views: Views) -> list[Panel]:
        """Show what the network sees in views of the first batch, such as reconstructions; without it, no picture.

        Called on the first rank only, so without collectives, in evaluation mode and without gradient.
        """
        raise NotImplementedError

    def after_run(self, folder: Path, manifest: Manifest, device: str) -> None:
        """Write further files into the folder of the finished run; called on the first rank, with ``--c`` again."""

    # ---- what a method may use ---------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "Method":
        """As for any module; the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def freeze_decoder(self) -> None:
        """Exclude the decoder from the training; call it if no loss depends on the decoder."""
        if hasattr(self.network, "decoder"):
            self.network.decoder.requires_grad_(False)
        self.network.encoder.requires_grad_(True)  # nnU-Net's decoder contains the encoder


def load_method(entry: MethodEntry) -> type[Method]:
    """Import the class of a registry entry.

    Raises:
        MethodContractError: it is no :class:`Method`, or has another name than its entry.
    """
    kind = entry.load()
    if not (isinstance(kind, type) and issubclass(kind, Method) and kind.name == entry.name):
        msg = f"The registry entry {entry.name!r} names {entry.module}.{entry.class_name}, which is {kind!r}; expected "
        raise MethodContractError(f"{msg}a subclass of Method whose name is {entry.name!r}. Correct the entry.")
    return kind


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy without gradients, such as a teacher.

    >>> any(p.requires_grad for p in frozen_copy(nn.Linear(2, 2)).parameters())
    False
    """
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    r"""Update the teacher's parameters to the moving average of the student's; copy the buffers.

    .. math:: \theta_t \leftarrow m \theta_t + (1 - m) \theta_s

    >>> teacher, student = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(teacher.weight), nn.init.ones_(student.weight)
    >>> update_ema(teacher, student, momentum=0.75)
    >>> teacher.weight.item()
    0.25
    """
    update = get_ema_multi_avg_fn(momentum)
    update(list(teacher.parameters()), list(student.parameters()), None)
    for old, new in zip(teacher.buffers(), student.buffers(), strict=True):
        old.copy_(new)


def cosine_momentum(start: float, progress: float) -> float:
    r"""Momentum of a teacher that rises from ``start`` to 1 along a cosine of the progress in [0, 1].

    .. math:: m = 1 - (1 - m_0) (\cos(\pi p) + 1) / 2

    >>> cosine_momentum(0.996, 0.0), cosine_momentum(0.996, 1.0)
    (0.996, 1.0)
    """
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
