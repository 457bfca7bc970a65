"""Training on frozen features of a pre-trained network beside the image (arXiv 2604.02564)."""

import dataclasses
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import UnsupportedConfigurationError, WeightsIncompatibleError, WeightsNotFoundError
from nnunet_invariance.networks.architectures.anatomix_unet import DESIGNS, NETWORK, check_patch
from nnunet_invariance.networks.frozen_features import (
    PLAIN4_DIVISOR,
    PlannedBackbone,
    add_frozen_features,
    build_backbone,
)
from nnunet_invariance.plans.anatomix import TO_01
from nnunet_invariance.plans.block import read_options
from nnunet_invariance.plans.style_options import MaskGenTrainerOptions
from nnunet_invariance.trainers.configuration import configuration_of
from nnunet_invariance.trainers.head import add_head
from nnunet_invariance.trainers.style import StyleTrainer
from nnunet_invariance.trainers.weights import load_checkpoint_into
from nnunet_invariance.weights.locate import find_shipped, named_weights

REMEDY = "`nnunet-invariance weights plan DATASET FILE --frozen-features` writes a plans copy that fits."
#: Method of the pre-training that made the features.
FEATURES_OF = "anatomix"


class MaskGenTrainer(StyleTrainer):
    """The planned network on the image and on frozen features of it, which training hides at random.

    The features come from a network that was pre-trained on synthetic volumes of random contrast (arXiv 2411.02372),
    so that they change less with the contrast than the image does (arXiv 2604.02564). The planned network starts from
    random weights. The features are a part of the saved network. With ``style_probability`` above 0, images are
    styled, too.

    Raises:
        UnsupportedConfigurationError: not 3-D, a patch that the network of the features cannot halve, or images that
            are not in [0, 1] although an anatomix U-Net needs them so.

    >>> MaskGenTrainer.options_class().feature_dropout
    0.75
    """

    options_class = MaskGenTrainerOptions
    options: MaskGenTrainerOptions
    method = "maskgen"
    dimensions = (3,)

    def check(self, plans: dict, configuration: str, dataset_json: dict) -> None:
        """Also refuse patches and images that the network of the features does not support."""
        super().check(plans, configuration, dataset_json)
        check_network(configuration_of(plans, configuration))

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build the planned network behind frozen features; prediction calls this."""
        options = read_options(MaskGenTrainerOptions, configuration_manager.configuration)
        backbone = build_backbone(options.features, num_input_channels)
        channels = num_input_channels * (1 + backbone.features_per_image)
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, channels, num_output_channels, enable_deep_supervision
        )
        network = add_frozen_features(network, backbone, options.feature_dropout)
        return add_head(network, options.head, cls.automatic_head)

    def load_weights(self) -> dict[str, Any]:
        """Load weights into the network of the features: a file that is named, or the shipped one.

        Raises:
            WeightsNotFoundError: there is no file.
            WeightsIncompatibleError: the file lacks a part of the network.
        """
        name = self.options.features
        found = named_weights(self.options.checkpoint) or find_shipped(FEATURES_OF, lambda path: path.stem == name)
        if found is None:
            raise WeightsNotFoundError(
                f"There are no weights for the features {name!r}. Import them (`nnunet-invariance weights import "
                f'{name} FILE`); {REMEDY} Or set "features": "anatomix_plain4", whose weights ship with the package.'
            )
        backbone = self.plain_network.encoder.backbone
        network = backbone.network if isinstance(backbone, PlannedBackbone) else backbone
        options = dataclasses.replace(self.options, transfer="encoder+decoder", min_coverage=1.0)
        report = load_checkpoint_into(network, found, options, self.print_to_log_file, FEATURES_OF)
        if missing := [tensor for tensor in report["missing"] if ".seg_layers." not in f".{tensor}"]:
            msg = f"{report['checkpoint']} lacks {counted(len(missing), 'tensor')} of the network {name!r}, whose "
            raise WeightsIncompatibleError(f"{msg}features would be random. Use one with encoder and decoder.")
        return report


def check_network(configuration: ConfigurationManager) -> None:
    """Refuse plans that the network of the features does not support.

    Raises:
        UnsupportedConfigurationError
    """
    features = read_options(MaskGenTrainerOptions, configuration.configuration).features
    if configuration.configuration["architecture"]["network_class_name"] == NETWORK:
        raise UnsupportedConfigurationError(
            "The plans name an anatomix U-Net as the network, but MaskGenTrainer puts features in front of a planned "
            f"network. {REMEDY}"
        )
    if features not in DESIGNS:
        _check_divisor(configuration.patch_size)
        return
    check_patch(configuration.patch_size, features)
    others = [scheme for scheme in configuration.normalization_schemes if scheme not in TO_01]
    if others:
        raise UnsupportedConfigurationError(
            f"The features {features!r} need images in [0, 1], but the plans normalise with {', '.join(others)}. "
            f"{REMEDY}"
        )


def _check_divisor(patch_size: list[int]) -> None:
    if any(size % PLAIN4_DIVISOR for size in patch_size):
        nearest = [max(1, round(size / PLAIN4_DIVISOR)) * PLAIN4_DIVISOR for size in patch_size]
        raise UnsupportedConfigurationError(
            f"The patch is {list(patch_size)} voxels, but the network of the features halves every axis three times. "
            f"Take a patch of multiples of {PLAIN4_DIVISOR} in a plans copy, for example {nearest}."
        )
