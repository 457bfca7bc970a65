"""Self-supervised Anatomical eMbedding (SAM, arXiv 2012.02383) on nnU-Net's preprocessed volumes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from nnunet_invariance.errors import OptionError, WeightsIncompatibleError
from nnunet_invariance.losses.hard_negative_info_nce import HardNegativeInfoNCE
from nnunet_invariance.networks.architectures.resnet3d import NETWORK as RESNET
from nnunet_invariance.networks.heads.anatomical_embedding import FEATURES, EmbeddingHead, upsample_unit
from nnunet_invariance.networks.planned import Architecture, to_tokens
from nnunet_invariance.nnunet.cases import Manifest
from nnunet_invariance.pretraining.data.crops import OverlappingCrops
from nnunet_invariance.pretraining.engine.method import Method, Setup, StepOutput
from nnunet_invariance.pretraining.engine.state import restore_module
from nnunet_invariance.pretraining.ranges import check_range
from nnunet_invariance.weights.checkpoint import load_checkpoint

SCALE = (0.8, 1.2)


@dataclass(frozen=True)
class SAMOptions:
    """Settings of ``pretrain sam``, given as ``--set field=value``.

    Attributes:
        volumes: volumes a step and rank, two views of each; 0 means half the planned batch size, at least 2. Never more
            than there are.
        backbone: "planned": the encoder of the plans; "resnet": the 3-D ResNet-18 of the paper.
        ignore: negatives of the fine embedding are at least this many of its cells away from the query.
        others: places of other volumes that every query of the coarse embedding meets.
        features: length of the embeddings; fewer take less memory and time.
        start: checkpoint whose encoder and heads are the first weights, as ``weights import sam`` writes it.

    Raises:
        OptionError: no such backbone, or a number out of range.
    """

    volumes: int = 0
    backbone: str = "planned"
    ignore: float = 5.0
    others: int = 1000
    features: int = FEATURES
    start: str = ""

    def __post_init__(self) -> None:
        if self.backbone not in ("planned", "resnet"):
            raise OptionError(f"--set backbone={self.backbone}: expected 'planned' or 'resnet'. Correct the word.")
        check_range(self, 0, math.inf, "volumes", "ignore", "others")
        check_range(self, 1, math.inf, "features")


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
    minimum_volumes = 2
    pretrained = ("encoder",)

    def __init__(self, setup: Setup, options: SAMOptions) -> None:
        if options.backbone == "resnet":
            channels = setup.architecture.input_channels
            setup = replace(setup, architecture=Architecture(RESNET, {}, (), channels, channels))
        super().__init__(setup, options)
        self.teacher = None
        if hasattr(self.network, "decoder"):
            self.network.decoder.requires_grad_(False)
        encoder = self.network.encoder.requires_grad_(True)  # nnU-Net's decoder holds the encoder too
        self.heads = EmbeddingHead(encoder.output_channels, encoder.strides, options.features)
        self.size = padded_size(setup.patch_size, self.heads.deepest_cell)
        wanted = max(2, options.volumes or setup.batch_size // 2)
        self.volumes = min(wanted, len(setup.cases)) if setup.cases else wanted
        self.fine_loss = HardNegativeInfoNCE(0.5, options.ignore, queries=100, hardest=2000, negatives=500)
        self.coarse_loss = HardNegativeInfoNCE(
            0.75, 0.75, queries=0, hardest=250, negatives=200, others=options.others
        )  # fmt: skip
        self.loss_weights = {"fine": 1.0, "coarse": 1.0}

    def prepare(self, manifest: Manifest, folder: Path, group: DistributedContext, resume: bool) -> None:
        """Take the first weights from ``start``; a continued run has its own."""
        if self.options.start and not resume:
            load_start(Path(self.options.start), self)

    def dataset(self, steps: int, seed: int, rank: int) -> Dataset:
        """See :class:`Method`."""
        return OverlappingCrops(self.setup.cases, self.size, self.volumes, seed, steps, rank)

    @torch.no_grad()
    def make_views(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """A turn, a scale and an intensity for each view; where its cells lie; and what the losses draw."""
        spacing = self.setup.spacing
        matrix = sample_affine(len(batch["image"]), spacing, generator, scale=SCALE)
        inside = apply_affine(batch["valid"], matrix, spacing, mode="nearest")
        image = apply_affine(batch["image"], matrix, spacing) * inside
        views: dict[str, Any] = {"image": apply_intensity(image, sample_intensity(image.shape, generator)) * inside}
        mm = torch.tensor(spacing, device=image.device)
        centre = (batch["origin"] + torch.tensor(self.size, device=image.device) / 2) * mm
        for name, cell, loss in (
            ("fine", self.heads.fine_cell, self.fine_loss),
            ("coarse", self.heads.coarse_cell, self.coarse_loss),
        ):
            position = centre[:, None] + input_positions(matrix, self.size, cell, spacing)
            position = joined(position / (mm * torch.tensor(cell, device=mm.device)))
            valid = joined(valid_cells(inside, cell).flatten(1))
            views[name] = {"position": position, "valid": valid, "draws": loss.draw(position, valid, generator)}
        return views

    def forward(self, views: dict[str, Any], progress: float) -> StepOutput:
        """See the class; :class:`Method` has the contract. A uniform guess costs log(1 + number of negatives)."""
        fine, coarse = self.heads(self.network.encoder(views["image"]))
        guide = upsample_unit(coarse.detach(), fine.shape[2:])
        losses = {
            "fine": self.fine_loss(_keys(fine), **views["fine"], guide=_keys(guide)),
            "coarse": self.coarse_loss(_keys(coarse), **views["coarse"]),
        }
        return StepOutput(losses)


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
