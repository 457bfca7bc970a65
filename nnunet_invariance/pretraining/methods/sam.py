"""Self-supervised Anatomical eMbedding (SAM, arXiv 2012.02383) on nnU-Net's preprocessed volumes."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nnunet_invariance.augmentation.device_views import (
    apply_affine,
    apply_intensity,
    input_positions,
    sample_affine,
    sample_intensity,
)
from nnunet_invariance.augmentation.masking import valid_cells
from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.common.options import choice, count, flag, number, text
from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.losses.hard_negative_info_nce import HardNegativeInfoNCE
from nnunet_invariance.networks.architectures.resnet3d import NETWORK as RESNET
from nnunet_invariance.networks.heads.anatomical_embedding import FEATURES, EmbeddingHead, upsample_unit
from nnunet_invariance.networks.planned import Architecture, to_tokens
from nnunet_invariance.nnunet.cases import Manifest
from nnunet_invariance.pretraining.data.crops import OverlappingCrops
from nnunet_invariance.pretraining.engine.method import Method, Setup, StepOutput, Views
from nnunet_invariance.pretraining.engine.options import MethodOptions
from nnunet_invariance.pretraining.engine.state import restore_module
from nnunet_invariance.weights.checkpoint import load_checkpoint

logger = logging.getLogger(__name__)

SCALE = (0.8, 1.2)


@dataclass(frozen=True)
class SAMOptions(MethodOptions):
    """Options of ``pretrain sam``.

    Raises:
        OptionError: a value is out of range.

    >>> SAMOptions(backbone="resnet").features
    128
    """

    batch_size: int = count(
        0, 0,
        doc="Volumes per step and rank, two views of each; 0: half the planned batch size, at least 2. Never more than "
        "there are.",
    )  # fmt: skip
    backbone: Literal["planned", "resnet"] = choice(
        "planned", "resnet", doc="planned: the encoder of the plans; resnet: the 3-D ResNet-18 of the paper."
    )
    ignore: float = number(
        5.0, 0, math.inf, doc="Negatives of the fine embedding are at least this many of its cells away from the query."
    )
    others: int = count(1000, 0, doc="Positions in other volumes that are negatives of every coarse query.")
    features: int = count(FEATURES, 1, doc="Length of the embedding vectors.")
    start: str = text("", doc="Checkpoint of the first weights, for example one written by `weights import sam`.")
    preview: bool = flag(False, doc="Whether preview.png shows points and their matches (--preview).")


class SAM(Method):
    """Two views of one volume with known geometry: a place is told from all others by a coarse and a fine embedding.

    Both embeddings learn by InfoNCE against hard and diverse negatives; the coarse one guides the choice of the fine
    one's. Distances are counted in cells of the maps, so that they fit any spacing. There is no teacher, and the
    decoder of the planned network is not trained.
    """

    name = "sam"
    citation = (
        "Yan et al., SAM: Self-supervised Learning of Pixel-wise Anatomical Embeddings in Radiological Images, "
        "IEEE TMI 2022, arXiv 2012.02383"
    )
    options_class = SAMOptions
    options: SAMOptions
    least_volumes = 2
    pretrained = ("encoder",)
    output_options = frozenset({"preview"})

    def __init__(self, setup: Setup, options: SAMOptions) -> None:
        if options.backbone == "resnet":
            channels = setup.architecture.input_channels
            setup = replace(setup, architecture=Architecture(RESNET, {}, (), channels, channels))
        super().__init__(setup, options)
        self.freeze_decoder()
        encoder = self.network.encoder
        self.heads = EmbeddingHead(encoder.output_channels, encoder.strides, options.features)
        self.size = padded_size(setup.patch_size, self.heads.deepest_cell)
        wanted = max(2, options.batch_size or setup.batch_size // 2)
        self.batch_size = min(wanted, len(setup.cases)) if setup.cases else wanted
        self.fine_loss = HardNegativeInfoNCE(0.5, options.ignore, num_queries=100, num_hardest=2000, num_negatives=500)
        self.coarse_loss = HardNegativeInfoNCE(
            0.75, 0.75, num_queries=0, num_hardest=250, num_negatives=200, num_cross_sample=options.others
        )
        self.loss_weights = {"fine": 1.0, "coarse": 1.0}

    def prepare(self, manifest: Manifest, folder: Path, group: DistributedContext, resume: bool) -> None:
        """Take the first weights from ``start``; a continued run has its own."""
        if self.options.start and not resume:
            load_start(Path(self.options.start), self)

    def dataset(self, steps: int, seed: int, rank: int) -> Dataset:
        """See :class:`Method`."""
        return OverlappingCrops(self.setup.cases, self.size, self.batch_size, seed, steps, rank)

    @torch.no_grad()
    def make_views(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Views:
        """A turn, a scale and an intensity for each view; where its cells lie; and what the losses draw."""
        spacing = self.setup.spacing
        matrix = sample_affine(len(batch["image"]), spacing, generator, scale=SCALE)
        inside = apply_affine(batch["valid"], matrix, spacing, mode="nearest")
        image = apply_affine(batch["image"], matrix, spacing) * inside
        views: Views = {"image": apply_intensity(image, sample_intensity(image.shape, generator)) * inside}
        mm = torch.tensor(spacing, device=image.device)
        centre = (batch["origin"] + torch.tensor(self.size, device=image.device) / 2) * mm
        for name, cell, loss in (
            ("fine", self.heads.fine_cell, self.fine_loss),
            ("coarse", self.heads.coarse_cell, self.coarse_loss),
        ):
            position = centre[:, None] + input_positions(matrix, self.size, cell, spacing)
            position = joined(position / (mm * torch.tensor(cell, device=mm.device)))
            valid = joined(valid_cells(inside, cell).flatten(1))
            indices = loss.sample_indices(position, valid, generator)
            views[name] = {"position": position, "valid_mask": valid, "indices": indices}
        return views

    def forward(self, views: Views, progress: float) -> StepOutput:
        """See the class; :class:`Method` has the contract. A uniform guess costs log(1 + number of negatives)."""
        fine, coarse = self.heads(self.network.encoder(views["image"]))
        guide = upsample_unit(coarse.detach(), fine.shape[2:])
        losses = {
            "fine": self.fine_loss(_keys(fine), **views["fine"], guide=_keys(guide)),
            "coarse": self.coarse_loss(_keys(coarse), **views["coarse"]),
        }
        return StepOutput(losses)

    def after_run(self, folder: Path, manifest: Manifest, device: str) -> None:
        """Draw ``preview.png`` if it is asked for."""
        if self.options.preview:
            from nnunet_invariance.pretraining.data.match_preview import preview_matches  # it imports this module

            logger.info("matches drawn: %s", preview_matches(folder, manifest.cases, device))


def joined(rows: Tensor) -> Tensor:
    """Rows of all first views, then of all second views, (2P, M, ...), as rows of volumes (P, 2M, ...)."""
    return torch.cat(rows.chunk(2), 1)


def _keys(feature_map: Tensor) -> Tensor:
    return joined(to_tokens(feature_map))


def padded_size(size: tuple[int, ...], cell: tuple[int, ...]) -> tuple[int, ...]:
    """The least multiple of ``cell`` that is not smaller than ``size``."""
    return tuple(-(-n // c) * c for n, c in zip(size, cell, strict=True))


def load_start(path: Path, method: SAM) -> None:
    """Fill encoder and heads from a checkpoint of the same backbone.

    Raises:
        WeightsIncompatibleError: another method or backbone; the method is then of no use. CheckpointCorruptError
    """
    checkpoint = load_checkpoint(path, ("network", "heads"))
    sections = (
        (method.network.encoder, {k.removeprefix("encoder."): v for k, v in checkpoint.section("network").items()
                                  if k.startswith("encoder.")}),
        (method.heads, checkpoint.section("heads")),
    )  # fmt: skip
    for module, tensors in sections:
        own = {name: t.shape for name, t in (*module.named_parameters(), *module.named_buffers())}
        found = {name: t.shape for name, t in tensors.items()}
        if own != found:
            differ = [n for n in (*own, *found) if own.get(n) != found.get(n)]
            msg = f"--set start={path}: {checkpoint.metadata['method']!r} weights do not fit backbone="
            msg += f"{method.options.backbone} with {method.setup.architecture.input_channels} channel(s); "
            msg += f"first difference: {differ[0]}. Set backbone and features to the file's."
            raise WeightsIncompatibleError(msg)
        restore_module(module, tensors)
