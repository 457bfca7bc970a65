"""The six feature maps of a U-Net that dense contrastive pre-training compares (arXiv 2411.02372)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from nnunet_invariance.networks.architectures.anatomix_unet import AnatomixUNet
from nnunet_invariance.networks.planned import PlannedModule, cumulative_strides, decode

MAPS = 6
OF_DECODER = 4
#: Convolutions of the released list: 1/8, bottleneck, 1/8, 1/4, 1/2, and the output.
ANATOMIX_LAYERS = (27, 31, 38, 45, 52, 65)


@dataclass(frozen=True)
class FeatureLevel:
    """One feature map: ``encoder_3`` or ``decoder_0``, numbered by resolution with 0 the finest; or ``layer_27``.

    >>> FeatureLevel("encoder_2", channels=128, stride=(4, 4, 4)).size((96, 96, 96))
    (24, 24, 24)
    """

    name: str
    channels: int
    stride: tuple[int, ...]

    def size(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        """Positions along each axis in a patch of this size."""
        return tuple(p // s for p, s in zip(patch_size, self.stride, strict=True))


def levels_of(network: PlannedModule) -> list[FeatureLevel]:
    """The maps in the order of the forward pass; the last one is the finest of the decoder.

    For a planned U-Net with S stages, these are the outputs of the finest four decoder stages (S - 1 if there are
    fewer) and of the deepest encoder stages, six in total. Five stages give the maps of the paper.
    """
    strides = cumulative_strides(network.encoder.strides)
    channels = network.encoder.output_channels
    if isinstance(network, AnatomixUNet):
        stages = (3, 4, 3, 2, 1, 0)
        widths = network.layer_channels(ANATOMIX_LAYERS)
        return [
            FeatureLevel(f"layer_{n}", width, strides[stage])
            for n, width, stage in zip(ANATOMIX_LAYERS, widths, stages, strict=True)
        ]
    decoder = min(OF_DECODER, len(strides) - 1)
    first = max(0, len(strides) - (MAPS - decoder))
    named = [(f"encoder_{stage}", stage) for stage in range(first, len(strides))]
    named += [(f"decoder_{stage}", stage) for stage in reversed(range(decoder))]
    return [FeatureLevel(name, channels[stage], strides[stage]) for name, stage in named]


def feature_maps(network: PlannedModule, image: Tensor) -> list[Tensor]:
    """The maps (B, C, *spatial) of :func:`levels_of`.

    For a released anatomix U-Net they are outputs of convolutions, before the norm; for a planned network, in which
    convolution, norm and activation are one block, they are outputs of stages.
    """
    if isinstance(network, AnatomixUNet):
        return network.activations(image, ANATOMIX_LAYERS)
    skips = network.encoder(image)
    decoded = decode(network.decoder, skips)[-OF_DECODER:]
    return [*skips[max(0, len(skips) - (MAPS - len(decoded))) :], *decoded]
