"""Self-supervised Anatomical eMbedding (SAM, arXiv 2012.02383) of nnU-Net's preprocessed volumes."""

import logging
import math
from collections.abc import Mapping, Sequence
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
from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.common.options import choice, count, flag, number, text
from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.losses.hard_negative_info_nce import HardNegativeInfoNCE
from nnunet_invariance.networks.architectures.resnet3d import NETWORK as RESNET
from nnunet_invariance.networks.heads.anatomical_embedding import FEATURES, EmbeddingHead, upsample_unit
from nnunet_invariance.networks.planned import Architecture, to_tokens
from nnunet_invariance.nnunet.cases import Manifest
from nnunet_invariance.pretraining.data.crops import OverlappingCrops
from nnunet_invariance.pretraining.engine.method import Method, Setup, StepOutput, Views
from nnunet_invariance.pretraining.engine.options import MethodOptions
from nnunet_invariance.pretraining.engine.panels import Panel
from nnunet_invariance.pretraining.engine.state import restore_module
from nnunet_invariance.weights.checkpoint import load_checkpoint, read_metadata

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
        doc="Volumes per step and rank, two views of each; 0: half the planned batch size, at least 2. At most all "
        "volumes.",
    )  # fmt: skip
    backbone: Literal["planned", "resnet"] = choice(
        "planned", "resnet", doc="planned: the encoder of the plans; resnet: the 3-D ResNet-18 of the paper."
    )
    min_negative_distance: float = number(
        5.0, 0, math.inf, doc="Smallest distance of a negative of the fine embedding from its query, in fine cells."
    )
    num_cross_sample: int = count(1000, 0, doc="Positions in other volumes that are negatives of every coarse query.")
    features: int = count(FEATURES, 1, doc="Length of the embedding vectors.")
    initial_weights: str = text(
        "", doc="Checkpoint of the initial weights, for example one written by `weights import sam`."
    )
    preview: bool = flag(False, doc="Whether to write preview.png, which shows points and their matches (--preview).")


class SAM(Method):
    """Learns a coarse and a fine embedding that distinguish every position of a volume from all others.

    Two views of a volume with known geometry give the positives. Both embeddings learn by InfoNCE against hard and
    diverse negatives, and the coarse embedding guides the choice of the fine negatives. Distances are in cells of the
    feature maps, so that they suit every spacing. There is no teacher, and the decoder of the planned network is not
    trained.

    >>> from nnunet_invariance.networks.stock import plain_conv_unet
    >>> planned = Architecture.from_plans(plain_conv_unet((4, 8)), 1, 1)
    >>> setup = Setup(planned, (16, 16, 16), (1.0, 1.0, 1.0), batch_size=2, unit_range=True, cases=())
    >>> SAM(setup, SAMOptions(features=8)).heads.fine_cell
    (2, 2, 2)
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
        batch_size = max(2, options.batch_size or setup.batch_size // 2)
        self.batch_size = min(batch_size, len(setup.cases)) if setup.cases else batch_size
        self.fine_loss = HardNegativeInfoNCE(
            0.5, options.min_negative_distance, num_queries=100, num_hardest=2000, num_negatives=500
        )
        self.coarse_loss = HardNegativeInfoNCE(
            0.75,
            0.75,
            num_queries=0,
            num_hardest=250,
            num_negatives=200,
            num_cross_sample=options.num_cross_sample,
        )
        self.loss_weights = {"fine": 1.0, "coarse": 1.0}

    @classmethod
    def check_files(cls, options: MethodOptions, folder: Path, resume: bool) -> None:
        """The checkpoint of ``initial_weights`` must exist and be sound."""
        if isinstance(options, SAMOptions) and options.initial_weights and not resume:
            read_metadata(options.initial_weights)

    def prepare(self, manifest: Manifest, folder: Path, group: DistributedContext, resume: bool) -> None:
        """Load the initial weights, unless a run is continued."""
        if self.options.initial_weights and not resume:
            load_initial_weights(Path(self.options.initial_weights), self)

    def dataset(self, steps: int, seed: int, rank: int) -> Dataset:
        """See :class:`Method`."""
        return OverlappingCrops(self.setup.cases, self.size, self.batch_size, seed, steps, rank)

    @torch.no_grad()
    def make_views(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Views:
        """An affine map and an intensity change per view, the positions of its cells, and the sampled indices."""
        spacing = self.setup.spacing
        matrix = sample_affine(len(batch["image"]), spacing, generator, scale=SCALE)
        inside = apply_affine(batch["valid"], matrix, spacing, mode="nearest")
        image = apply_affine(batch["image"], matrix, spacing) * inside
        views: Views = {"image": apply_intensity(image, sample_intensity(image.shape, generator)) * inside}
        mm = copy_to(image.device, spacing)
        centre = (batch["origin"] + copy_to(image.device, self.size) / 2) * mm
        for name, cell, loss in (
            ("fine", self.heads.fine_cell, self.fine_loss),
            ("coarse", self.heads.coarse_cell, self.coarse_loss),
        ):
            position = centre[:, None] + input_positions(matrix, self.size, cell, spacing)
            position = join_views(position / (mm * copy_to(mm.device, cell)))
            valid = join_views(valid_cells(inside, cell).flatten(1))
            indices = loss.sample_indices(position, valid, generator)
            views[name] = {"position": position, "valid_mask": valid, "indices": indices}
        return views

    def forward(self, views: Views, progress: float) -> StepOutput:
        """See the docstring of the class. Equal similarities give the loss log(1 + number of negatives)."""
        fine, coarse = self.heads(self.network.encoder(views["image"]))
        guide = upsample_unit(coarse.detach(), fine.shape[2:])
        losses = {
            "fine": self.fine_loss(_keys(fine), **views["fine"], guide=_keys(guide)),
            "coarse": self.coarse_loss(_keys(coarse), **views["coarse"]),
        }
        return StepOutput(losses)

    def picture(self, views: Views) -> list[Panel]:
        """See :class:`Method`: both views of each volume, with a cell that they share."""
        first, second = (image[:, 0] for image in views["image"].chunk(2))
        position, valid = (views["coarse"][name].chunk(2, 1) for name in ("position", "valid_mask"))
        usable = valid[0][:, :, None] & valid[1][:, None]
        distance = torch.cdist(*position).masked_fill(~usable, torch.inf)
        nearest = distance.flatten(1).argmin(1)
        cells = nearest // distance.shape[2], nearest % distance.shape[2]
        size = [n // c for n, c in zip(self.size, self.heads.coarse_cell, strict=True)]
        points = [self._centres(index, size) for index in cells]
        shown = zip(("first", "second"), (first, second), points, strict=True)
        return [Panel(f"{name} view, the same point", image, points=point) for name, image, point in shown]

    def _centres(self, cells: Tensor, size: Sequence[int]) -> Tensor:
        """Voxel positions (N, 3) of the centres of coarse cells, which are flat indices (N) into a grid of ``size``."""
        index = torch.stack(torch.unravel_index(cells, list(size)), 1)
        return (index + 0.5) * copy_to(cells.device, self.heads.coarse_cell) - 0.5

    def after_run(self, folder: Path, manifest: Manifest, device: str) -> None:
        """Write ``preview.png`` if the options ask for it."""
        if self.options.preview:
            from nnunet_invariance.pretraining.data.match_preview import preview_matches  # which imports this module

            logger.info("preview of matches written: %s", preview_matches(folder, manifest.cases, device))


def join_views(rows: Tensor) -> Tensor:
    """Join the rows of both views of each volume.

    Args:
        rows: (2P, M, ...), all first views before all second views.

    >>> join_views(torch.tensor([[1], [2], [3], [4]]))
    tensor([[1, 3],
            [2, 4]])
    """
    return torch.cat(rows.chunk(2), 1)


def _keys(feature_map: Tensor) -> Tensor:
    return join_views(to_tokens(feature_map))


def padded_size(size: tuple[int, ...], cell: tuple[int, ...]) -> tuple[int, ...]:
    """The smallest multiple of ``cell`` that is not smaller than ``size``, per axis.

    >>> padded_size((5, 8), (4, 4))
    (8, 8)
    """
    return tuple(-(-n // c) * c for n, c in zip(size, cell, strict=True))


def load_initial_weights(path: Path, method: SAM) -> None:
    """Load encoder and heads from a checkpoint with the same backbone.

    Raises:
        WeightsIncompatibleError: the checkpoint is of another method or backbone. The encoder may then have been
            changed already, so the method must not be used.
        CheckpointCorruptError: the file is damaged.
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
            raise WeightsIncompatibleError(
                f"--set initial_weights={path}: the {checkpoint.metadata['method']!r} weights do not fit backbone="
                f"{method.options.backbone} with {counted(method.setup.architecture.input_channels, 'channel')}; first "
                f"difference: {differ[0]}. Set backbone and features to those of the file."
            )
        restore_module(module, tensors)
