"""Frozen anatomix features as additional input channels of a planned network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.networks.architectures.anatomix_unet import AnatomixUNet
from nnunet_invariance.networks.planned import PlannedModule


class FrozenFeatureEncoder(nn.Module):
    """A planned encoder that also sees the features of a frozen anatomix U-Net, for each channel of the image.

    Features are instance-normalised (without affine) over the patch; in training, channels of image and features are
    dropped at random (arXiv 2604.02564). It is a drop-in replacement for the planned encoder.

    Args:
        backbone: a U-Net with channels "separate"; it is frozen and stays in evaluation mode.
        planned: an encoder with ``output_channels`` and ``strides``, for C + C * features input channels.
        dropout: probability that a channel is dropped.

    >>> from nnunet_invariance.networks.architectures.anatomix_unet import DESIGNS, AnatomixEncoder
    >>> design = DESIGNS["anatomix"]
    >>> planned = AnatomixEncoder({"0": nn.Conv3d(17, 16, 1)}, design, images=1)
    >>> encoder = FrozenFeatureEncoder(AnatomixUNet(1, 2, channels="separate"), planned, dropout=0.0)
    >>> encoder(torch.rand(1, 1, 32, 32, 32))[0].shape
    torch.Size([1, 16, 32, 32, 32])
    """

    def __init__(self, backbone: AnatomixUNet, planned: PlannedModule, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.planned = planned
        self.channel_dropout = nn.Dropout3d(dropout)
        self.output_channels, self.strides = planned.output_channels, planned.strides

    def train(self, mode: bool = True) -> "FrozenFeatureEncoder":
        """The backbone stays in evaluation mode, so that the features of a patch do not depend on the batch."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, C, *spatial) in [0, 1] to the planned encoder's maps."""
        with torch.no_grad():
            features = F.instance_norm(self.backbone.features(image))
        return self.planned(self.channel_dropout(torch.cat((image, features), 1)))


def add_frozen_features(network: PlannedModule, backbone: AnatomixUNet, dropout: float) -> PlannedModule:
    """Replace the encoder of a planned network by a :class:`FrozenFeatureEncoder`, in place; returns the network."""
    network.encoder = FrozenFeatureEncoder(backbone, network.encoder, dropout)
    return network
