"""Masked autoencoder on nnU-Net's planned network (arXiv 2111.06377), the baseline of the other methods."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nnunet_invariance.augmentation.device_views import apply_intensity, augment_affine, sample_intensity
from nnunet_invariance.augmentation.masking import cell_statistics, sample_block_mask, upsample_cells, valid_cells
from nnunet_invariance.common.options import choice, count, number
from nnunet_invariance.losses.masked_reconstruction import MaskedReconstructionLoss
from nnunet_invariance.pretraining.data.crops import RandomCrops
from nnunet_invariance.pretraining.engine.method import Method, Setup, StepOutput, Views
from nnunet_invariance.pretraining.engine.options import MethodOptions
from nnunet_invariance.pretraining.engine.panels import Panel, restoration


@dataclass(frozen=True)
class MAEOptions(MethodOptions):
    """Options of ``pretrain mae``.

    Raises:
        OptionError: a value is out of range.

    >>> MAEOptions(mask_ratio=0.6).batch_size
    0
    """

    batch_size: int = count(0, 0, doc="Crops per step and rank; 0: the planned batch size.")
    mask_ratio: float = number(
        0.75, 0, 1, low_excluded=True, high_excluded=True, doc="Fraction of the cells that are hidden."
    )
    target: Literal["intensity", "cell"] = choice(
        "intensity",
        "cell",
        doc="What is restored: intensities, or intensities that are normalised within each cell, so that cells of low "
        "contrast count as much as those with air or bone.",
    )


class MAE(Method):
    """The planned U-Net, with its skip connections, restores the hidden cells of an image; hidden voxels are zero.

    Crops, views, masks and loss are those of Alice's masked reconstruction. There is no teacher.

    >>> from nnunet_invariance.networks.planned import Architecture
    >>> from nnunet_invariance.networks.stock import plain_conv_unet
    >>> planned = Architecture.from_plans(plain_conv_unet((4, 8)), 1, 1)
    >>> setup = Setup(planned, (16, 16, 16), (1.0, 1.0, 1.0), batch_size=2, unit_range=True, cases=())
    >>> MAE(setup, MAEOptions()).loss_weights
    {'mim': 1.0}
    """

    name = "mae"
    citation = "He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, arXiv 2111.06377"
    options_class = MAEOptions
    options: MAEOptions

    def __init__(self, setup: Setup, options: MAEOptions) -> None:
        super().__init__(setup, options)
        self.batch_size = options.batch_size or setup.batch_size
        self.reconstruction_loss = MaskedReconstructionLoss()
        self.loss_weights = {"mim": 1.0}

    def dataset(self, steps: int, seed: int, rank: int) -> Dataset:
        """See :class:`Method`."""
        return RandomCrops(self.setup.cases, self.setup.patch_size, self.batch_size, seed, steps, rank)

    @torch.no_grad()
    def make_views(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Views:
        """One affine map per crop, an intensity change of the input, and a mask of hidden cells."""
        image, valid = augment_affine(batch["image"], batch["valid"], self.setup.spacing, generator)
        cells = valid_cells(valid, self.cell)
        hidden = upsample_cells(sample_block_mask(cells, self.options.mask_ratio, generator), self.cell)
        student = apply_intensity(image, sample_intensity(image.shape, generator)) * valid
        return {"student": student * ~hidden, "image": image, "hidden": hidden & valid}

    def forward(self, views: Views, progress: float) -> StepOutput:
        """See :class:`Method`."""
        target = views["image"]
        if self.options.target == "cell":
            mean, deviation = cell_statistics(target, self.cell)
            target = (target - mean) / deviation
        return StepOutput({"mim": self.reconstruction_loss(self.network(views["student"]), target, views["hidden"])})

    def picture(self, views: Views) -> list[Panel]:
        """See :class:`Method`: reconstructions, with the true mean and deviation of a cell if it was normalised."""
        restored = self.network(views["student"])
        if self.options.target == "cell":
            mean, deviation = cell_statistics(views["image"], self.cell)
            restored = restored * deviation + mean
        return restoration(views["student"], restored, views["image"], views["hidden"])
