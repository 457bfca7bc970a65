"""Frozen anatomix features beside the intensities, in front of a planned network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.networks.architectures.anatomix_unet import AnatomixUNet


class FrozenFeatureEncoder(nn.Module):
    """The encoder of a planned network, which sees the image and an anatomix U-Net's features of each of its channels.

    Features are instance-normalised (without affine) over the patch; in training, channels of image and features are
    hidden at random (arXiv 2604.02564). It stands where the planned encoder stood, and answers for it.

    Args:
        backbone: with channels "separate"; frozen, and in evaluation mode always.
        planned: an encoder with ``output_channels`` and ``strides``, for C + C * features input channels.
        dropout: probability that a channel is hidden.
    """

    def __init__(self, backbone: AnatomixUNet, planned: nn.Module, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.planned = planned
        self.hide = nn.Dropout3d(dropout)
        self.output_channels, self.strides = planned.output_channels, planned.strides

    def train(self, mode: bool = True) -> "FrozenFeatureEncoder":
        """The backbone stays in evaluation mode: batch statistics would give a patch other features each time."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, C, *spatial) in [0, 1] to the planned encoder's maps."""
        with torch.no_grad():
            features = F.instance_norm(self.backbone.features(image))
        return self.planned(self.hide(torch.cat((image, features), 1)))


def add_frozen_features(network: nn.Module, backbone: AnatomixUNet, dropout: float) -> nn.Module:
    """The planned network, changed in place, with :class:`FrozenFeatureEncoder` as its encoder."""
    network.encoder = FrozenFeatureEncoder(backbone, network.encoder, dropout)
    return network
