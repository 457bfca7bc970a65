"""PUIR: a modality-invariant representation of an individual, X_h (arXiv 2411.06106)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from nnunet_invariance.augmentation.cube_group import apply_symmetry, invert_symmetry, sample_symmetries, symmetries
from nnunet_invariance.augmentation.cutout import fill_with_noise, sample_boxes
from nnunet_invariance.augmentation.device_views import augment_affine
from nnunet_invariance.common.collectives import all_gather_rows, gather_row_counts, get_rank
from nnunet_invariance.common.options import choice, count, number
from nnunet_invariance.losses.decomposition import DecompositionLoss
from nnunet_invariance.losses.equivariance import FeatureEquivarianceLoss
from nnunet_invariance.losses.individual_contrast import IndividualContrast
from nnunet_invariance.losses.modality_invariance import ModalityInvarianceLoss
from nnunet_invariance.networks.architectures.bottleneck_decoder import BottleneckDecoder
from nnunet_invariance.networks.architectures.puir import PUIRNet
from nnunet_invariance.networks.planned import Architecture, PlannedModule, cumulative_strides
from nnunet_invariance.networks.presence import over_maps, present_channels
from nnunet_invariance.nnunet.grids import check_training_grids
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.pretraining.data.crops import RandomCrops
from nnunet_invariance.pretraining.engine.method import Method, Setup, StepOutput, Views
from nnunet_invariance.pretraining.engine.options import MethodOptions
from nnunet_invariance.pretraining.engine.panels import Panel
from nnunet_invariance.pretraining.methods.pooling import pool_octants
from nnunet_invariance.pretraining.methods.puir_diagnostics import (
    TITLES,
    collapse_warnings,
    measure,
    sample_present_channels,
)

EMBEDDING = 128  # size of a projected feature
OCTANTS = 8


@dataclass(frozen=True)
class PUIROptions(MethodOptions):
    """Options of ``pretrain puir``.

    Raises:
        OptionError: a value is out of range.

    >>> PUIROptions(weight_contrast=0.0).tokens
    'spatial'
    """

    batch_size: int = count(0, 0, doc="Crops per step and rank; 0: the planned batch size.")
    source_modalities: int = count(
        2, 1, doc="Modalities per step from each of which a crop is reconstructed, in addition to their fusion."
    )
    tokens: Literal["spatial", "channel"] = choice(
        "spatial", "channel",
        doc="Tokens that attend to the prior: the cells of the feature map, or its channels, as in the authors' code.",
    )  # fmt: skip
    prior: int = count(64, 1, doc="Number of entries of a spatial prior.")
    stem: Literal["shared", "own"] = choice(
        "shared", "own", doc="What is in front of the shared encoder: nothing, or a few filters of each modality."
    )
    anchor: Literal["others", "running"] = choice(
        "others", "running",
        doc="Anchor of the invariance loss: the mean of the other modalities, or a running mean as in the authors' "
        "code.",
    )  # fmt: skip
    weight_contrast: float = number(1.0, 0, math.inf, doc="Weight of the contrast between individuals.")
    weight_decomposition: float = number(1.0, 0, math.inf, doc="Weight of the reconstruction of all modalities.")
    weight_equivariance: float = number(1.0, 0, math.inf, doc="Weight of the equivariance loss.")
    weight_invariance: float = number(1.0, 0, math.inf, doc="Weight of the invariance loss.")
    foreground: float = number(
        10.0, 0, math.inf, doc="Weight of the mean error in the foreground, relative to that in the whole crop."
    )
    cutout: float = number(0.3, 0, 1, doc="Largest fraction of a crop that noise replaces, per modality.")
    temperature: float = number(0.1, 0, math.inf, low_excluded=True, doc="Temperature of the contrast.")
    queue: int = count(1024, 0, doc="Rows of earlier steps that serve as negatives.")


class IndexedCrops(RandomCrops):
    """Random crops with the index of their case.

    >>> from nnunet_invariance.nnunet.cases import Case
    >>> len(IndexedCrops([Case("a", "", (32, 32, 32), ((0, 32),) * 3)], (16, 16, 16), batch_size=2, seed=0, steps=10))
    10
    """

    def __getitem__(self, step: int) -> dict[str, Any]:
        """As :class:`RandomCrops`, and ``case`` (B,), the index of each crop's case."""
        batch = super().__getitem__(step)
        index = {case.name: i for i, case in enumerate(self.cases)}
        return {**batch, "case": torch.tensor([index[key] for key in batch["keys"]])}


class _Heads(nn.Module):
    """Decoder of all modalities, projection of the contrast, and the queue of features of earlier steps."""

    queue: Tensor
    queue_ids: Tensor

    def __init__(self, encoder: PlannedModule, modalities: int, options: PUIROptions) -> None:
        super().__init__()
        width = encoder.output_channels[-1]
        self.decoder = BottleneckDecoder(encoder, modalities)
        if options.weight_contrast:  # with several ranks, every parameter needs a gradient
            self.projection = nn.Sequential(
                nn.Linear(OCTANTS * width, 4 * EMBEDDING), nn.ReLU(inplace=True), nn.Linear(4 * EMBEDDING, EMBEDDING)
            )
            self.register_buffer("queue", torch.zeros(options.queue, EMBEDDING))
            self.register_buffer("queue_ids", torch.full((options.queue, 2), -1))


class PUIR(Method):
    r"""Each modality alone gives an estimate of X_h, a modality-invariant representation of the subject.

    .. math:: L = w_c L_{contr} + w_d L_{decom} + w_e L_{equ} + w_i L_{inv}

    * decomposition: a decoder without skip connections reconstructs all modalities of the crop from the estimate of one
      modality, and from the fused estimates of a random subset. The input was transformed by a symmetry; the target is
      the crop before that;
    * invariance: the estimates of a crop agree. Each modality was transformed by its own element of the symmetry group
      of the patch, which is inverted first;
    * equivariance: the estimate of the transformed image, after the inverse transform, is the estimate of the image;
    * contrast: a crop is distinguished from the crops of other cases.

    A modality that a case lacks is a constant channel, which is no source, no target and in no loss. Crops are
    augmented in geometry only, because the method learns one mapping from X_h to intensities for all cases.

    >>> from nnunet_invariance.networks.stock import plain_conv_unet
    >>> planned = Architecture.from_plans(plain_conv_unet((4, 8)), 2, 2)
    >>> setup = Setup(planned, (16, 16, 16), (1.0, 1.0, 1.0), batch_size=2, unit_range=True, cases=())
    >>> len(PUIR(setup, PUIROptions()).symmetries)
    48
    """

    name = "puir"
    citation = (
        "Personalize to Generalize: Towards a Universal Medical Multi-Modality Generalization through Personalization, "
        "ICCV 2025, arXiv 2411.06106"
    )
    options_class = PUIROptions
    options: PUIROptions
    allows_missing_channels = True
    no_weight_decay = (".prior",)
    pretrained = ("encoder",)
    titles = TITLES

    def __init__(self, setup: Setup, options: PUIROptions) -> None:
        super().__init__(setup, options)
        self.freeze_decoder()
        self.network.fusions[:-1].requires_grad_(False)
        modalities = setup.architecture.input_channels
        self.heads = _Heads(self.network.encoder, modalities, options)
        self.batch_size = options.batch_size or setup.batch_size
        self.sources = min(options.source_modalities, modalities)
        strides = cumulative_strides(self.network.encoder.strides)
        # Only axes with equal voxel sizes are exchanged.
        self.symmetries = symmetries([setup.patch_size, *strides, setup.spacing])
        self.decomposition = DecompositionLoss(options.foreground)
        self.invariance = ModalityInvarianceLoss(options.anchor)
        self.equivariance = FeatureEquivarianceLoss()
        self.contrast = IndividualContrast(options.temperature)
        self.loss_weights = {
            "decomposition": options.weight_decomposition,
            "invariance": options.weight_invariance,
            "equivariance": options.weight_equivariance,
            "contrast": options.weight_contrast,
        }

    @property
    def architecture(self) -> Architecture:
        """The planned architecture with one input channel, as PUIR's encoder has."""
        return replace(self.setup.architecture, input_channels=1)

    def build_network(self) -> nn.Module:
        """See :class:`PUIRNet`."""
        chosen = self.options
        return PUIRNet(self.setup.architecture, self.setup.patch_size, chosen.tokens, chosen.prior, chosen.stem)

    @classmethod
    def check_dataset(cls, planned: PlannedDataset) -> None:
        """Check that the modalities of every raw case have the same grid.

        Raises:
            InvarianceError: see :func:`check_training_grids`.
        """
        check_training_grids(planned)

    def dataset(self, steps: int, seed: int, rank: int) -> Dataset:
        """See :class:`Method`."""
        return IndexedCrops(self.setup.cases, self.setup.patch_size, self.batch_size, seed, steps, rank)

    @torch.no_grad()
    def make_views(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Views:
        """Two views of the crop with boxes of noise, and what the losses need.

        In ``student`` each modality is transformed by its own symmetry, in ``second`` it is not.
        """
        present = present_channels(batch["image"])
        image, valid = augment_affine(batch["image"], batch["valid"], self.setup.spacing, generator)
        image = torch.where(over_maps(present, image), image, 0)
        flat = image.flatten(0, 1)[:, None]
        elements = sample_symmetries(self.symmetries, len(flat), generator)
        views = {"student": apply_symmetry(flat, elements), "second": flat}
        for name, view in views.items():
            view = fill_with_noise(view, sample_boxes(view.shape, self.options.cutout, generator), generator)
            views[name] = view.view_as(image)
        order = torch.rand(present.shape, generator=generator, device=image.device).argsort(1)
        sources, source_mask = sample_present_channels(present, self.sources, generator)
        uniform = torch.rand(present.shape, generator=generator, device=image.device)
        largest = uniform == uniform.masked_fill(~present, -1).amax(1, keepdim=True)  # so that the subset is not empty
        subset = present & ((uniform < 0.5) | largest)
        return {
            **views,
            "image": image,
            "valid_mask": valid,
            "present": present,
            "elements": elements.view(*present.shape, 6),
            "order": order,
            "sources": sources,
            "source_mask": source_mask,
            "subset": subset,
            "case": batch["case"],
        }

    def forward(self, views: Views, progress: float) -> StepOutput:
        """See the docstring of the class, and :class:`Method`."""
        present = views["present"]
        transformed = self.network.estimate(views["student"], present).profiles
        elements = views["elements"].flatten(0, 1)
        profiles = invert_symmetry(transformed.flatten(0, 1), elements).view_as(transformed)
        losses = {
            "decomposition": self._decomposition(transformed, profiles, views),
            "invariance": self.invariance(profiles, present, views["order"]),
        }
        rows: dict[str, Tensor] = {}
        if self.options.weight_equivariance or self.options.weight_contrast:
            with torch.no_grad():
                second = self.network.estimate(views["second"], present).profiles
            losses["equivariance"] = self.equivariance(profiles, second, present)
            if self.options.weight_contrast:
                losses["contrast"], rows = self._contrast(profiles, second, views)
        return StepOutput(losses, measure(profiles.detach(), present), rows=rows)

    def _decomposition(self, transformed: Tensor, profiles: Tensor, views: dict[str, Tensor]) -> Tensor:
        """Reconstruct all modalities from single ones, before the symmetry is inverted, and from a fused subset."""
        index = views["sources"]
        chosen = torch.take_along_dim(transformed, over_maps(index, transformed), 1)
        elements = torch.take_along_dim(views["elements"], index[..., None], 1).flatten(0, 1)
        single = invert_symmetry(self.heads.decoder(chosen.flatten(0, 1)), elements).unflatten(0, index.shape)
        subset = views["subset"]
        not_empty = subset.any(1, keepdim=True)
        fused = self.heads.decoder(self.network.fusions[-1](profiles, subset | ~not_empty))
        outputs = torch.cat((single, fused[:, None]), 1)
        output_mask = torch.cat((views["source_mask"], not_empty), 1)
        return self.decomposition(outputs, views["image"], views["present"], views["valid_mask"], output_mask)

    def _contrast(self, profiles: Tensor, second: Tensor, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """One row per modality and crop; the keys are the rows of all ranks and of earlier steps."""
        crop = torch.arange(len(profiles), device=profiles.device) + get_rank() * len(profiles)
        ids = torch.stack((views["case"], crop), 1)[:, None].expand(-1, profiles.shape[1], -1)
        present = views["present"][..., None]
        anchor_ids = torch.where(present, ids, -2).flatten(0, 1)
        anchors = self.heads.projection(pool_octants(profiles.flatten(0, 1)))
        with torch.no_grad():
            own = self.heads.projection(pool_octants(second.flatten(0, 1))).float()
            sizes = gather_row_counts(len(own), own.device)
            keys = all_gather_rows(own, sizes)
            key_ids = all_gather_rows(torch.where(present, ids, -1).flatten(0, 1), sizes)
        loss = self.contrast(
            anchors, anchor_ids, torch.cat((keys, self.heads.queue)), torch.cat((key_ids, self.heads.queue_ids))
        )
        # In later steps the crop has no number, so that its rows are negatives only.
        queue_ids = torch.stack((key_ids[:, 0], torch.full_like(key_ids[:, 0], -1)), 1)
        return loss, {"keys": keys, "ids": queue_ids}

    @torch.no_grad()
    def after_step(self, output: StepOutput, progress: float) -> None:
        """Push the newest rows into the queue; the oldest rows leave it."""
        if output.rows:
            length = len(self.heads.queue)
            self.heads.queue.copy_(torch.cat((output.rows["keys"], self.heads.queue))[:length])
            self.heads.queue_ids.copy_(torch.cat((output.rows["ids"], self.heads.queue_ids))[:length])

    def picture(self, views: Views) -> list[Panel]:
        """See :class:`Method`: every modality of the first crop, restored from one modality and from all of them."""
        present, image = views["present"][:1], views["image"][0]
        profiles = self.network.estimate(views["second"][:1], present).profiles
        first = int(present[0].float().argmax())
        alone, fused = (
            self.heads.decoder(profiles[:, first]),
            self.heads.decoder(self.network.fusions[-1](profiles, present)),
        )
        rows = self.setup.channel_names or tuple(f"channel {number}" for number in range(len(image)))
        shown = {"original": image, f"from {rows[first]} alone": alone[0], "from all": fused[0]}
        return [Panel(title, volumes, image, rows=rows) for title, volumes in shown.items()]

    def problems(self, diagnostics: Mapping[str, float]) -> list[str]:
        """Signs of collapse in the means of an epoch."""
        return collapse_warnings(diagnostics)
