"""Frozen features of a pre-trained network as additional input channels of a planned network."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.networks.architectures.anatomix_unet import DESIGNS, AnatomixUNet
from nnunet_invariance.networks.planned import Architecture, PlannedModule, decode
from nnunet_invariance.networks.stock import PLAIN4, plain_conv_unet

PLAIN4_DIVISOR = 8  # voxels, of every axis of a patch


class PlannedBackbone(nn.Module):
    """The finest decoder features of a planned U-Net with one input channel, for each channel of an image.

    >>> PlannedBackbone(plain4()).features(torch.rand(1, 2, 16, 16, 16)).shape
    torch.Size([1, 64, 16, 16, 16])
    """

    def __init__(self, network: PlannedModule) -> None:
        super().__init__()
        self.network = network
        self.features_per_image = int(network.encoder.output_channels[0])

    def features(self, image: Tensor) -> Tensor:
        """(B, C, *spatial) to (B, C * features, *spatial)."""
        maps = decode(self.network.decoder, self.network.encoder(image.flatten(0, 1)[:, None]))
        return maps[-1].unflatten(0, image.shape[:2]).flatten(1, 2)


def plain4() -> PlannedModule:
    """The network of the shipped weights ``anatomix_plain4``, with random weights."""
    return Architecture.from_plans(plain_conv_unet(PLAIN4), 1, 1).build()


def build_backbone(features: str, channels: int) -> Any:
    """A backbone with random weights: an anatomix U-Net by its name, otherwise that of ``anatomix_plain4``.

    Args:
        channels: of the image.
    """
    if features not in DESIGNS:
        return PlannedBackbone(plain4())
    return AnatomixUNet(channels, 1, variant=features, channels="separate").apply(AnatomixUNet.initialize)


class FrozenFeatureEncoder(nn.Module):
    """A planned encoder that also sees the features of a frozen network, for each channel of the image.

    Features are instance-normalised (without affine) over the patch; in training, channels of image and features are
    dropped at random (arXiv 2604.02564). It is a drop-in replacement for the planned encoder.

    Args:
        backbone: a module with ``features_per_image`` and ``features``, as :func:`build_backbone` makes it. It is
            frozen and stays in evaluation mode.
        planned: an encoder with ``output_channels`` and ``strides``, for C + C * features input channels.
        dropout: probability that a channel is dropped.

    >>> from nnunet_invariance.networks.architectures.anatomix_unet import DESIGNS, AnatomixEncoder
    >>> design = DESIGNS["anatomix"]
    >>> planned = AnatomixEncoder({"0": nn.Conv3d(17, 16, 1)}, design, images=1)
    >>> encoder = FrozenFeatureEncoder(AnatomixUNet(1, 2, channels="separate"), planned, dropout=0.0)
    >>> encoder(torch.rand(1, 1, 32, 32, 32))[0].shape
    torch.Size([1, 16, 32, 32, 32])
    """

    def __init__(self, backbone: Any, planned: PlannedModule, dropout: float) -> None:
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
        """(B, C, *spatial) to the planned encoder's maps."""
        with torch.no_grad():
            features = F.instance_norm(self.backbone.features(image))
        return self.planned(self.channel_dropout(torch.cat((image, features), 1)))


def add_frozen_features(network: PlannedModule, backbone: Any, dropout: float) -> PlannedModule:
    """Replace the encoder of a planned network by a :class:`FrozenFeatureEncoder`, in place; returns the network."""
    network.encoder = FrozenFeatureEncoder(backbone, network.encoder, dropout)
    return network
