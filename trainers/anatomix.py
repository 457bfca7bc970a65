"""Fine-tuning of networks that were pre-trained on synthetic volumes (anatomix, arXiv 2411.02372)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_invariance.augmentation.interventions.base import match_statistics
from nnunet_invariance.losses.info_nce import SupervisedInfoNCE
from nnunet_invariance.networks.architectures.anatomix_unet import NETWORK, check_patch
from nnunet_invariance.plans.anatomix import TO_01
from nnunet_invariance.plans.options import AnatomixTrainerOptions
from nnunet_invariance.synthesis.appearance import apply_appearance, sample_appearance
from nnunet_invariance.synthesis.corruptions import apply_corruption, sample_corruption
from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.trainers.configuration import configuration_of
from nnunet_invariance.trainers.dense_contrast import DenseContrastTrainer
from nnunet_invariance.trainers.targets import finest, tissue_labels

REMEDY = "`nnunet-invariance weights plan DATASET FILE` writes a plans copy that fits."


class AnatomixTrainer(DenseContrastTrainer):
    r"""The planned network or an anatomix U-Net, pre-trained on synthetic volumes.

    The auxiliary loss is the supervised InfoNCE of the pre-training: embeddings with the same label, in both views and
    all samples of the batch, are positives of each other.

    Raises:
        UnsupportedConfigurationError: not 3-D, or a patch that the U-Net cannot halve.

    >>> AnatomixTrainer.options_class().num_positions
    512
    """

    options_class = AnatomixTrainerOptions
    options: AnatomixTrainerOptions
    method = "anatomix"
    contrast_reads_labels = True

    def check(self, plans: dict, configuration: str, dataset_json: dict) -> None:
        """Also refuse patches that the U-Net does not support."""
        super().check(plans, configuration, dataset_json)
        architecture = configuration_of(plans, configuration).configuration["architecture"]
        if architecture["network_class_name"] == NETWORK:
            check_patch(configuration_of(plans, configuration).patch_size, architecture["arch_kwargs"]["variant"])

    def prepare_views(self, encoder: nn.Module) -> None:
        """As the base; the second view leaves the running statistics of batch norm, which prediction uses, alone."""
        super().prepare_views(encoder)
        self.second_pass = without_statistics(encoder, self.second_pass)

    def on_train_start(self) -> None:
        """As the base; warns if images are not in [0, 1]."""
        super().on_train_start()
        others = [s for s in self.configuration_manager.normalization_schemes if s not in TO_01]
        if others and self.configuration_manager.network_arch_class_name == NETWORK and not self.scratch:
            self.print_to_log_file(
                "WARNING: the weights were trained on images in [0, 1], but the plans normalise with "
                f"{', '.join(others)}. {REMEDY}"
            )

    # ---- auxiliary loss ----------------------------------------------------------------------------------------------

    def build_contrast(self) -> nn.Module:
        """Supervised InfoNCE over all samples of the batch."""
        self.synthesis = SynthesisOptions(size=tuple(self.configuration_manager.patch_size), divisor=1)
        return SupervisedInfoNCE(self.options.temperature, positives="across", negatives="across")

    def contrast_views(self, first: Tensor, second: Tensor, valid_mask: Tensor, labels: Tensor | None) -> Tensor:
        """Supervised InfoNCE over the positions of both views whose label is known."""
        assert labels is not None
        if self.label_manager.has_ignore_label and not self.label_manager.has_regions:
            valid_mask = valid_mask & (labels != self.label_manager.ignore_label)
        return self.contrast(torch.cat((first, second), 1), labels.repeat(1, 2), valid_mask.repeat(1, 2))

    def losses_of_views(self, batch: dict[str, Any], samples: int) -> tuple[Tensor, dict[str, Tensor]]:
        """As the base; the second view is synthetic if the options ask for it."""
        if self.options.second_view == "synthetic":
            batch = {**batch, "views": batch["views"]._replace(second=self.synthetic_view(batch, samples))}
        return super().losses_of_views(batch, samples)

    @torch.no_grad()
    def synthetic_view(self, batch: dict[str, Any], samples: int) -> Tensor:
        """Paint the labels of the first ``samples`` samples in random appearances, one per channel: (B, C, *spatial).

        Mean and standard deviation are those of the image. Voxels in the padding and outside of the nonzero mask keep
        their values.
        """
        image, valid_mask = batch["views"].second[:samples].float(), batch["views"].valid_mask[:samples] > 0
        labels, _ = tissue_labels(finest(batch["target"])[:samples], self.label_manager)
        labels = labels.repeat_interleave(image.shape[1], 0)
        with torch.autocast(image.device.type, enabled=False):
            appearances = [sample_appearance(self.synthesis, self.generator) for _ in labels]
            corruptions = [sample_corruption(self.synthesis, self.generator) for _ in labels]
            painted = apply_appearance(labels, appearances, self.synthesis.texture_weight)
            painted = apply_corruption(painted, corruptions, self.synthesis).reshape(image.shape)
        return torch.where(valid_mask, match_statistics(painted, image), image)


def without_statistics(encoder: nn.Module, forward: Callable[[Tensor], list[Tensor]]) -> Callable[[Tensor], Any]:
    """Wrap the pass of an encoder in training mode so that it does not update the running statistics of batch norm."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm3d)]

    def second_pass(x: Tensor) -> list[Tensor]:
        momenta = [norm.momentum for norm in norms]
        try:
            for norm in norms:
                norm.momentum = 0.0
            return forward(x)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

    return second_pass
