"""Fine-tuning of networks that were pre-trained on synthetic volumes (anatomix, arXiv 2411.02372)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunet_invariance.augmentation.interventions.base import match_statistics
from nnunet_invariance.errors import UnsupportedConfigurationError, WeightsIncompatibleError
from nnunet_invariance.losses.info_nce import SupervisedInfoNCE
from nnunet_invariance.networks.architectures.anatomix_unet import NETWORK, AnatomixUNet, check_patch
from nnunet_invariance.networks.frozen_features import add_frozen_features
from nnunet_invariance.networks.heads.projection import (
    ProjectionHead,
    contrast_stage,
    gather_positions,
    sample_positions,
)
from nnunet_invariance.plans.anatomix import TO_01
from nnunet_invariance.plans.options import AnatomixOptions, read_options
from nnunet_invariance.synthesis.appearance import apply_appearance, sample_appearance
from nnunet_invariance.synthesis.corruptions import apply_corruption, sample_corruption
from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.trainers.base import InvarianceTrainer
from nnunet_invariance.trainers.configuration import configuration_of
from nnunet_invariance.trainers.targets import finest, tissue_labels
from nnunet_invariance.trainers.weights import find_and_load_weights

REMEDY = "`nnunet-invariance weights plan DATASET FILE` writes a plans copy that fits."


class AnatomixTrainer(InvarianceTrainer):
    r"""The planned network or an anatomix U-Net, pre-trained on synthetic volumes.

    Beside the segmentation loss stands the multi-positive InfoNCE of the pre-training: embeddings of one label, in both
    views and all samples of the batch, are each other's positives. With ``frozen_features`` the planned network trains
    from random weights on the image and frozen features of it.

    Raises:
        UnsupportedConfigurationError: not 3-D, a patch that the U-Net cannot halve, or images that are not in [0, 1] in
            front of frozen features.
    """

    options_class = AnatomixOptions
    options: AnatomixOptions
    method = "anatomix"
    dimensions = (3,)

    def check(self, plans: dict, configuration: str, dataset_json: dict) -> None:
        """As the base; the patch that the U-Net needs, and images in [0, 1] for frozen features."""
        super().check(plans, configuration, dataset_json)
        check_network(configuration_of(plans, configuration))

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The planned network, behind frozen features where the plans block says so; prediction calls this too."""
        options = read_options(AnatomixOptions, configuration_manager.configuration)
        variant, channels = options.frozen_features, num_input_channels
        backbone = None
        if variant != "none":
            backbone = AnatomixUNet(channels, 1, variant=variant, channels="separate").apply(AnatomixUNet.initialize)
            channels += channels * backbone.features_per_image
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, channels, num_output_channels, enable_deep_supervision
        )
        return network if backbone is None else add_frozen_features(network, backbone, options.feature_dropout)

    def build_aux(self, channels: list[int], strides: list[tuple[int, ...]]) -> nn.ModuleDict:
        """A projection head on the deepest encoder stage whose map has enough positions."""
        patch = self.configuration_manager.patch_size
        self.stage = contrast_stage(patch, strides, self.options.positions)
        self.contrast = SupervisedInfoNCE(self.options.temperature, positives="across", negatives="across")
        if self.options.second_view == "synthetic":
            self.synthesis = SynthesisOptions(size=tuple(patch), divisor=1)
        self.print_to_log_file(
            f"Multi-positive InfoNCE on encoder stage {self.stage} of {len(channels)} (stride {strides[self.stage]}), "
            f"second view: {self.options.second_view}"
        )
        return nn.ModuleDict({"projection": ProjectionHead(channels[self.stage])})

    def _build_views(self, encoder: nn.Module) -> None:
        """As the base; batch norm's running statistics, which prediction uses, stay those of the first view."""
        super()._build_views(encoder)
        self.second_pass = keeping_statistics(encoder, self.second_pass)

    def on_train_start(self) -> None:
        """As the base; warns where images are not in [0, 1]."""
        super().on_train_start()
        others = [s for s in self.configuration_manager.normalization_schemes if s not in TO_01]
        if others and self.configuration_manager.network_arch_class_name == NETWORK and not self.scratch:
            self.print_to_log_file(
                f"WARNING: the weights were trained on images in [0, 1], but the plans normalise with "
                f"{', '.join(others)}. {REMEDY}"
            )

    def load_weights(self) -> dict[str, Any]:
        """Weights from the four places, for the network or for what makes the frozen features.

        Raises:
            WeightsIncompatibleError: frozen features need a whole U-Net, and a part of it is not in the file.
        """
        if self.options.frozen_features == "none":
            return super().load_weights()
        names = (self.plans_manager.dataset_name, self.plans_manager.plans_name, self.configuration_name)
        options = dataclasses.replace(self.options, transfer="encoder+decoder", min_coverage=1.0)
        report = find_and_load_weights(
            self.plain_network.encoder.backbone, self.method, names, options, self.print_to_log_file
        )
        if report["missing"]:
            raise WeightsIncompatibleError(
                f"{report['checkpoint']} lacks {len(report['missing'])} tensors of the U-Net "
                f"{self.options.frozen_features!r}, whose features would be random. Take a checkpoint with encoder and "
                "decoder."
            )
        return report

    def losses_of_views(self, batch: dict[str, Any], samples: int) -> tuple[Tensor, dict[str, Tensor]]:
        """As the base, with labels in a random appearance as the second view where the options say so."""
        if self.options.second_view == "synthetic":
            batch = {**batch, "views": batch["views"]._replace(second=self.synthetic_view(batch, samples))}
        return super().losses_of_views(batch, samples)

    @torch.no_grad()
    def synthetic_view(self, batch: dict[str, Any], samples: int) -> Tensor:
        """The labels of the first ``samples`` samples in a random appearance, each channel in its own (B, C, *spatial).

        Mean and s.d. are those of the image; padding, and what is outside the nonzero mask, stays as it is.
        """
        image, content = batch["views"].second[:samples].float(), batch["views"].valid_mask[:samples] > 0
        labels, _ = tissue_labels(finest(batch["target"])[:samples], self.label_manager)
        labels = labels.repeat_interleave(image.shape[1], 0)
        with torch.autocast(image.device.type, enabled=False):
            appearances, corruptions = (
                [sample(self.synthesis, self.generator) for _ in labels]
                for sample in (sample_appearance, sample_corruption)
            )
            painted = apply_appearance(labels, appearances, self.synthesis.texture_weight)
            painted = apply_corruption(painted, corruptions, self.synthesis).reshape(image.shape)
        return torch.where(content, match_statistics(painted, image), image)

    def aux_losses(self, first: list[Tensor], second: list[Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Multi-positive InfoNCE at positions with image content, the same ones in both views."""
        maps = first[self.stage], second[self.stage]
        samples, _, *size = maps[0].shape
        drawn = sample_positions(batch["content"][:samples], size, self.options.positions, self.generator)
        index, valid = (tensor.to(self.device) for tensor in drawn)
        labels, _ = tissue_labels(finest(batch["target"])[:samples], self.label_manager)
        labels = F.interpolate(labels.float(), size=size, mode="nearest-exact").flatten(1).gather(1, index).long()
        if self.label_manager.has_ignore_label and not self.label_manager.has_regions:
            valid = valid & (labels != self.label_manager.ignore_label)
        rows = [self.aux["projection"](gather_positions(feature_map, index)) for feature_map in maps]
        return {"info_nce": self.contrast(torch.cat(rows, 1), labels.repeat(1, 2), valid.repeat(1, 2))}


def keeping_statistics(encoder: nn.Module, forward: Callable[[Tensor], list[Tensor]]) -> Callable:
    """The pass of an encoder in training mode, without a trace in its running statistics."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm3d)]

    def passing(x: Tensor) -> list[Tensor]:
        momenta = [norm.momentum for norm in norms]
        try:
            for norm in norms:
                norm.momentum = 0.0
            return forward(x)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

    return passing


def check_network(configuration: ConfigurationManager) -> None:
    """Refuse patches and images that the anatomix U-Net of a configuration cannot take.

    Raises:
        UnsupportedConfigurationError
    """
    architecture = configuration.configuration["architecture"]
    frozen = read_options(AnatomixOptions, configuration.configuration).frozen_features
    if architecture["network_class_name"] == NETWORK:
        check_patch(configuration.patch_size, architecture["arch_kwargs"]["variant"])
        if frozen != "none":
            msg = "The plans name an anatomix U-Net as the network, and its frozen features in front of it. "
            raise UnsupportedConfigurationError(msg + f'Remove "frozen_features" from the plans block. {REMEDY}')
    if frozen == "none":
        return
    check_patch(configuration.patch_size, frozen)
    others = [scheme for scheme in configuration.normalization_schemes if scheme not in TO_01]
    if others:
        raise UnsupportedConfigurationError(
            f"Frozen features are made of images in [0, 1], but the plans normalise with {', '.join(others)}. {REMEDY} "
            "(--frozen-features)"
        )
