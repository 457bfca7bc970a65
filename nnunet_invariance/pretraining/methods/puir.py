"""PUIR: one representation of an individual, whatever modality it is estimated from (arXiv 2411.06106)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

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
from nnunet_invariance.networks.planned import Architecture, cumulative_strides
from nnunet_invariance.networks.presence import over_maps, present_channels
from nnunet_invariance.nnunet.grids import check_training_grids
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.pretraining.data.crops import RandomCrops
from nnunet_invariance.pretraining.engine.method import Method, Setup, StepOutput, Views
from nnunet_invariance.pretraining.engine.options import MethodOptions
from nnunet_invariance.pretraining.methods.pooling import pool_octants
from nnunet_invariance.pretraining.methods.puir_diagnostics import measure, random_present, warnings_of

EMBEDDING = 128  # length of a contrast row
CELLS = 8  # of the grid it is pooled to


@dataclass(frozen=True)
class PUIROptions(MethodOptions):
    """Options of ``pretrain puir``.

    Raises:
        OptionError: a value is out of range.

    >>> PUIROptions(weight_contrast=0.0).tokens
    'spatial'
    """

    batch_size: int = count(0, 0, doc="Crops per step and rank; 0: the planned batch size.")
    sources: int = count(2, 1, doc="Modalities per step from which a crop is reconstructed, beside their fusion.")
    tokens: Literal["spatial", "channel"] = choice(
        "spatial", "channel",
        doc="Tokens that attend to the prior: the cells of the feature map, or its channels as in the release.",
    )  # fmt: skip
    prior: int = count(64, 1, doc="Number of entries of a spatial prior.")
    anchor: Literal["others", "running"] = choice(
        "others", "running",
        doc="Anchor of the invariance loss: the mean of the other modalities, or the running mean of the release.",
    )  # fmt: skip
    weight_contrast: float = number(1.0, 0, math.inf, doc="Weight of the contrast between individuals.")
    weight_decomposition: float = number(1.0, 0, math.inf, doc="Weight of the reconstruction of all modalities.")
    weight_equivariance: float = number(1.0, 0, math.inf, doc="Weight of the equivariance loss.")
    weight_invariance: float = number(1.0, 0, math.inf, doc="Weight of the invariance loss.")
    foreground: float = number(
        10.0, 0, math.inf, doc="Weight of the foreground's mean beside the whole crop's in the reconstruction."
    )
    cutout: float = number(0.3, 0, 1, doc="Largest fraction of a crop that noise replaces, per modality.")
    temperature: float = number(0.1, 0, math.inf, low_excluded=True, doc="Temperature of the contrast.")
    queue: int = count(1024, 0, doc="Rows of earlier steps that serve as negatives.")


class CasesOfCrops(RandomCrops):
    """Random crops that also say which case each is from."""

    def __getitem__(self, step: int) -> dict:
        """As :class:`RandomCrops`, with ``case`` (B,), indices into the cases."""
        batch = super().__getitem__(step)
        index = {case.name: i for i, case in enumerate(self.cases)}
        return {**batch, "case": torch.tensor([index[key] for key in batch["keys"]])}


class _Heads(nn.Module):
    """The decoder of all modalities, the projection of the contrast, and rows of earlier steps."""

    def __init__(self, encoder: nn.Module, modalities: int, options: PUIROptions) -> None:
        super().__init__()
        width = encoder.output_channels[-1]
        self.decoder = BottleneckDecoder(encoder, modalities)
        if options.weight_contrast:  # several ranks want no idle parameters
            self.projection = nn.Sequential(
                nn.Linear(CELLS * width, 4 * EMBEDDING), nn.ReLU(inplace=True), nn.Linear(4 * EMBEDDING, EMBEDDING)
            )
            self.register_buffer("queue", torch.zeros(options.queue, EMBEDDING))
            self.register_buffer("queue_ids", torch.full((options.queue, 2), -1))


class PUIR(Method):
    r"""Each modality alone gives an estimate of X_h, which must say who it is and not how it was imaged.

    .. math:: L = w_c L_{contr} + w_d L_{decom} + w_e L_{equ} + w_i L_{inv}

    * decomposition: from the estimate of one modality, and from the fused ones of a random subset, a decoder without
      skips rebuilds all modalities of the crop, in the crop's own frame though the input was turned;
    * invariance: estimates of a crop agree. Each modality was turned by its own element of the symmetry group of the
      patch, which is undone first;
    * equivariance: the estimate of the turned image, turned back, is the estimate of the image itself;
    * contrast: crops are told from those of other cases.

    A modality that a case lacks is a constant channel: it is no source, no target and in no loss. Images differ from
    case to case in geometry only, because a mapping from X_h to intensities that is the same for all is to be learned.
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

    def __init__(self, setup: Setup, options: PUIROptions) -> None:
        super().__init__(setup, options)
        self.freeze_decoder()
        self.network.fusions[:-1].requires_grad_(False)
        modalities = setup.architecture.input_channels
        self.heads = _Heads(self.network.encoder, modalities, options)
        self.batch_size = options.batch_size or setup.batch_size
        self.sources = min(options.sources, modalities)
        strides = cumulative_strides(self.network.encoder.strides)
        # Axes with other voxel sizes are not exchanged.
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
        """One input channel, as the encoder has."""
        return replace(self.setup.architecture, input_channels=1)

    def build_network(self) -> nn.Module:
        """See :class:`PUIRNet`."""
        return PUIRNet(self.setup.architecture, self.setup.patch_size, self.options.tokens, self.options.prior)

    @classmethod
    def check_dataset(cls, planned: PlannedDataset) -> None:
        """Refuse a raw case whose modalities have different grids."""
        check_training_grids(planned)

    def dataset(self, steps: int, seed: int, rank: int) -> Dataset:
        """See :class:`Method`."""
        return CasesOfCrops(self.setup.cases, self.setup.patch_size, self.batch_size, seed, steps, rank)

    @torch.no_grad()
    def make_views(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Views:
        """The clean crop; each modality turned and with boxes of noise; with boxes of noise only; and who is there."""
        present = present_channels(batch["image"])
        image, inside = augment_affine(batch["image"], batch["valid"], self.setup.spacing, generator)
        image = torch.where(over_maps(present, image), image, 0)
        flat = image.flatten(0, 1)[:, None]
        elements = sample_symmetries(self.symmetries, len(flat), generator)
        views = {"student": apply_symmetry(flat, elements), "second": flat}
        for name, view in views.items():
            view = fill_with_noise(view, sample_boxes(view.shape, self.options.cutout, generator), generator)
            views[name] = view.view_as(image)
        order = torch.rand(present.shape, generator=generator, device=image.device).argsort(1)
        sources, source_counts = random_present(present, self.sources, generator)
        chance = torch.rand(present.shape, generator=generator, device=image.device)
        subset = present & ((chance < 0.5) | (chance == chance.masked_fill(~present, -1).amax(1, keepdim=True)))
        return {
            **views,
            "image": image,
            "inside": inside,
            "present": present,
            "elements": elements.view(*present.shape, 6),
            "order": order,
            "sources": sources,
            "source_counts": source_counts,
            "subset": subset,
            "case": batch["case"],
        }

    def forward(self, views: Views, progress: float) -> StepOutput:
        """See the class; :class:`Method` has the contract."""
        present = views["present"]
        turned_profiles = self.network.estimate(views["student"], present).profiles
        elements = views["elements"].flatten(0, 1)
        profiles = invert_symmetry(turned_profiles.flatten(0, 1), elements).view_as(turned_profiles)
        losses = {
            "decomposition": self._decomposition(turned_profiles, profiles, views),
            "invariance": self.invariance(profiles, present, views["order"]),
        }
        rows = {}
        if self.options.weight_equivariance or self.options.weight_contrast:
            with torch.no_grad():
                second = self.network.estimate(views["second"], present).profiles
            losses["equivariance"] = self.equivariance(profiles, second, present)
            if self.options.weight_contrast:
                losses["contrast"], rows = self._contrast(profiles, second, views)
        return StepOutput(losses, measure(profiles.detach(), present), rows=rows)

    def _decomposition(self, turned_profiles: Tensor, profiles: Tensor, views: dict[str, Tensor]) -> Tensor:
        """From single modalities, in their turned frame and turned back as images, and from a fused subset."""
        index = views["sources"]
        chosen = torch.take_along_dim(turned_profiles, over_maps(index, turned_profiles), 1)
        elements = torch.take_along_dim(views["elements"], index[..., None], 1).flatten(0, 1)
        single = invert_symmetry(self.heads.decoder(chosen.flatten(0, 1)), elements).unflatten(0, index.shape)
        subset = views["subset"]
        some = subset.any(1, keepdim=True)
        fused = self.heads.decoder(self.network.fusions[-1](profiles, subset | ~some))
        outputs = torch.cat((single, fused[:, None]), 1)
        counts = torch.cat((views["source_counts"], some), 1)
        return self.decomposition(outputs, views["image"], views["present"], views["inside"], counts)

    def _contrast(self, profiles: Tensor, second: Tensor, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """One row a modality and crop; keys are those of all ranks and of earlier steps."""
        crop = torch.arange(len(profiles), device=profiles.device) + get_rank() * len(profiles)
        ids = torch.stack((views["case"], crop), 1)[:, None].expand(-1, profiles.shape[1], -1)
        here = views["present"][..., None]
        anchor_ids = torch.where(here, ids, -2).flatten(0, 1)
        anchors = self.heads.projection(pool_octants(profiles.flatten(0, 1)))
        with torch.no_grad():
            own = self.heads.projection(pool_octants(second.flatten(0, 1))).float()
            sizes = gather_row_counts(len(own), own.device)
            keys = all_gather_rows(own, sizes)
            key_ids = all_gather_rows(torch.where(here, ids, -1).flatten(0, 1), sizes)
        loss = self.contrast(
            anchors, anchor_ids, torch.cat((keys, self.heads.queue)), torch.cat((key_ids, self.heads.queue_ids))
        )
        old = torch.stack((key_ids[:, 0], torch.full_like(key_ids[:, 0], -1)), 1)  # a crop is met in its own step only
        return loss, {"keys": keys, "ids": old}

    @torch.no_grad()
    def after_step(self, output: StepOutput, progress: float) -> None:
        """The newest rows come into the queue, the oldest leave it."""
        if output.rows:
            length = len(self.heads.queue)
            self.heads.queue.copy_(torch.cat((output.rows["keys"], self.heads.queue))[:length])
            self.heads.queue_ids.copy_(torch.cat((output.rows["ids"], self.heads.queue_ids))[:length])

    def warnings(self, diagnostics: Mapping[str, float]) -> list[str]:
        """Signs of collapse in an epoch's means."""
        return warnings_of(diagnostics)
