"""Dense contrast: a voxel has similar hypercolumns in two views, and distant voxels have different ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from nnunet_invariance.augmentation.device_views import apply_affine, apply_intensity, sample_affine, sample_intensity
from nnunet_invariance.augmentation.masking import sample_block_mask, upsample_cells, valid_cells
from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.common.options import count, number
from nnunet_invariance.losses.dense_info_nce import DenseInfoNCE
from nnunet_invariance.losses.masked_reconstruction import MaskedReconstructionLoss
from nnunet_invariance.networks.hypercolumns import compute_hypercolumns, sample_hypercolumns
from nnunet_invariance.pretraining.data.crops import RandomCrops
from nnunet_invariance.pretraining.engine.method import Method, Setup, StepOutput, Views
from nnunet_invariance.pretraining.engine.options import MethodOptions
from nnunet_invariance.pretraining.engine.panels import Panel, restoration


@dataclass(frozen=True)
class DenseOptions(MethodOptions):
    """Options of ``pretrain dense``.

    Raises:
        OptionError: a value is out of range.

    >>> DenseOptions(num_positions=128).least_distance
    4.0
    """

    batch_size: int = count(0, 0, doc="Crops per step and rank; 0: the planned batch size.")
    num_positions: int = count(256, 2, doc="Positions per crop that are compared between the views.")
    least_distance: float = number(4.0, 0, 1000, doc="Distance in voxels from which on a position is a negative.")
    temperature: float = number(0.1, 0, 10, low_excluded=True, doc="Temperature of InfoNCE.")
    features: int = count(64, 1, doc="Size of the projected hypercolumn.")
    weight_reconstruction: float = number(0.0, 0, 1000, doc="Weight of masked reconstruction; 0 leaves it out.")
    mask_ratio: float = number(
        0.75, 0, 1, low_excluded=True, high_excluded=True, doc="Fraction of the cells that reconstruction hides."
    )


class HypercolumnHead(nn.Sequential):
    """Layer norm, linear, ReLU, linear: hypercolumns (..., C) to (..., ``features``).

    >>> HypercolumnHead(24, 8)(torch.zeros(2, 5, 24)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, channels: int, features: int) -> None:
        hidden = 2 * features
        super().__init__(nn.LayerNorm(channels), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, features))


class Dense(Method):
    r"""Two affine and intensity views of a crop; the hypercolumns of matched voxels are positives (InfoNCE).

    A position p of the crop, as an offset from its centre, is at :math:`A_v^{-1} p` in the view v. Positions outside of
    a view or of the image are left out. Encoder and decoder are both trained. There is no teacher.

    >>> from nnunet_invariance.networks.planned import Architecture
    >>> from nnunet_invariance.networks.stock import plain_conv_unet
    >>> planned = Architecture.from_plans(plain_conv_unet((4, 8)), 1, 1)
    >>> setup = Setup(planned, (16, 16, 16), (1.0, 1.0, 1.0), batch_size=2, unit_range=True, cases=())
    >>> Dense(setup, DenseOptions()).loss_weights
    {'contrast': 1.0, 'reconstruction': 0.0}
    """

    name = "dense"
    citation = (
        "after Pinheiro et al., Unsupervised Learning of Dense Visual Representations, NeurIPS 2020, arXiv 2011.05499"
    )
    options_class = DenseOptions
    options: DenseOptions
    loop_defaults: ClassVar[Mapping[str, float]] = {"lr": 1e-3}
    titles: ClassVar[Mapping[str, str]] = {"matched": "voxels that match themselves (higher is better)"}

    def __init__(self, setup: Setup, options: DenseOptions) -> None:
        super().__init__(setup, options)
        self.batch_size = options.batch_size or setup.batch_size
        decoder = [layer.in_channels for layer in self.network.decoder.seg_layers]
        channels = sum(self.network.encoder.output_channels) + sum(decoder)
        self.heads = HypercolumnHead(channels, options.features)
        self.contrast = DenseInfoNCE(options.temperature, options.least_distance)
        self.reconstruction = MaskedReconstructionLoss()
        self.loss_weights = {"contrast": 1.0, "reconstruction": options.weight_reconstruction}
        if not options.weight_reconstruction:
            self.network.decoder.seg_layers.requires_grad_(False)

    def dataset(self, steps: int, seed: int, rank: int) -> Dataset:
        """See :class:`Method`."""
        return RandomCrops(self.setup.cases, self.setup.patch_size, self.batch_size, seed, steps, rank)

    @torch.no_grad()
    def make_views(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Views:
        """Two views, the sampled positions in the crop and in both views, and the mask of the valid ones."""
        image, valid, spacing = batch["image"], batch["valid"], self.setup.spacing
        mm = copy_to(image.device, spacing)
        size = copy_to(image.device, image.shape[2:])
        uniform = torch.rand(
            len(image), self.options.num_positions, len(spacing), generator=generator, device=mm.device
        )
        offset = (uniform - 0.5) * size * mm
        views: Views = {"position": offset / mm}
        usable = torch.ones(uniform.shape[:2], dtype=torch.bool, device=image.device)
        for name in ("first", "second"):
            matrix = sample_affine(len(image), spacing, generator)
            inside = apply_affine(valid, matrix, spacing, mode="nearest")
            warped = apply_affine(image, matrix, spacing) * inside
            views[name] = apply_intensity(warped, sample_intensity(image.shape, generator)) * inside
            position = offset @ torch.linalg.inv(matrix).mT.to(offset.dtype) / mm + (size - 1) / 2
            views[f"position_in_{name}"] = position
            usable &= _is_valid(inside, position)
        views["valid_mask"] = usable
        if self.options.weight_reconstruction:
            views |= self._masked(image, valid, generator)
        return views

    def _masked(self, image: Tensor, valid: Tensor, generator: torch.Generator) -> Views:
        """An intensity view with hidden cells, and the image and mask of its reconstruction."""
        hidden = upsample_cells(
            sample_block_mask(valid_cells(valid, self.cell), self.options.mask_ratio, generator), self.cell
        )
        student = apply_intensity(image, sample_intensity(image.shape, generator)) * valid
        return {"masked": student * ~hidden, "image": image, "hidden": hidden & valid}

    def forward(self, views: Views, progress: float) -> StepOutput:
        """See :class:`Method`; ``matched`` is the fraction of positions that are most similar to themselves."""
        first, second = (self._rows(views[name], views[f"position_in_{name}"]) for name in ("first", "second"))
        position, valid_mask = views["position"], views["valid_mask"]
        losses = {"contrast": self.contrast(first, second, position, valid_mask)}
        if self.options.weight_reconstruction:
            restored = self.network(views["masked"])
            losses["reconstruction"] = self.reconstruction(restored, views["image"], views["hidden"])
        matched = self.contrast.accuracy(first.detach(), second.detach(), position, valid_mask)
        return StepOutput(losses, {"matched": matched})

    def problems(self, diagnostics: Mapping[str, float]) -> list[str]:
        """A collapse if voxels match themselves about as rarely as with features that are all equal."""
        matched = diagnostics.get("matched", 1.0)
        if matched > 4 / self.options.num_positions:  # neighbours are no negatives, so chance is above 1 / positions
            return []
        return [
            f"collapse: only {matched:.2%} of the voxels match themselves, as many as with equal features; use a lower "
            "learning rate (--set lr=...) or a higher temperature (--set temperature=...)"
        ]

    def picture(self, views: Views) -> list[Panel]:
        """See :class:`Method`: both views with a pair of matched voxels, and reconstructions if they are learnt."""
        distance = views["position"].norm(dim=2).masked_fill(~views["valid_mask"], torch.inf)
        nearest = distance.argmin(1)[:, None, None]  # of the matched positions to the centre of the crop
        columns = []
        for name in ("first", "second"):
            points = views[f"position_in_{name}"].take_along_dim(nearest, 1)[:, 0]
            columns.append(Panel(f"{name} view, the same voxel", views[name][:, 0], points=points))
        if self.options.weight_reconstruction:
            restored = self.network(views["masked"])
            columns += restoration(views["masked"], restored, views["image"], views["hidden"])
        return columns

    def _rows(self, image: Tensor, positions: Tensor) -> Tensor:
        maps = compute_hypercolumns(self.network, image)
        return self.heads(sample_hypercolumns(maps, image.shape[2:], positions))


def _is_valid(inside: Tensor, positions: Tensor) -> Tensor:
    """Whether positions (B, N, D), in voxels, lie in the valid mask (B, 1, *spatial): (B, N)."""
    nearest = positions.round().long()
    size = copy_to(positions.device, inside.shape[2:])
    within = ((nearest >= 0) & (nearest < size)).all(2)
    index = torch.minimum(nearest.clamp(min=0), size - 1)
    flat = (index[..., 0] * size[1] + index[..., 1]) * size[2] + index[..., 2]
    return within & inside.flatten(1).gather(1, flat)
