"""The six feature maps of a U-Net that a dense contrastive pre-training looks at (arXiv 2411.02372)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from nnunet_invariance.networks.architectures.anatomix_unet import AnatomixUNet
from nnunet_invariance.networks.planned import cumulative_strides, decode

MAPS = 6
OF_DECODER = 4
#: Convolutions of the released list: 1/8, bottleneck, 1/8, 1/4, 1/2, and the output.
ANATOMIX_LAYERS = (27, 31, 38, 45, 52, 65)


@dataclass(frozen=True)
class Level:
    """One map: ``encoder_3`` or ``decoder_0``, numbered by resolution, 0 the finest; or ``layer_27``."""

    name: str
    channels: int
    stride: tuple[int, ...]

    def size(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        """Positions along each axis in a patch of this size."""
        return tuple(p // s for p, s in zip(patch_size, self.stride, strict=True))


def levels_of(network: nn.Module) -> list[Level]:
    """The maps in the order of the forward pass, the last one the finest of the decoder.

    Of a planned U-Net with S stages: the outputs of the finest four decoder stages (S - 1 where there are fewer) and of
    as many of the deepest encoder stages as make six. Five stages give the maps of the paper.
    """
    strides = cumulative_strides(network.encoder.strides)
    channels = network.encoder.output_channels
    if isinstance(network, AnatomixUNet):
        stages = (3, 4, 3, 2, 1, 0)
        layers = {**dict(network.encoder.model.items()), **dict(network.decoder.model.items())}
        return [
            Level(f"layer_{n}", layers[str(n)].out_channels, strides[stage])
            for n, stage in zip(ANATOMIX_LAYERS, stages, strict=True)
        ]
    decoder = min(OF_DECODER, len(strides) - 1)
    first = max(0, len(strides) - (MAPS - decoder))
    named = [(f"encoder_{stage}", stage) for stage in range(first, len(strides))]
    named += [(f"decoder_{stage}", stage) for stage in reversed(range(decoder))]
    return [Level(name, channels[stage], strides[stage]) for name, stage in named]


def feature_maps(network: nn.Module, image: Tensor) -> list[Tensor]:
    """The maps (B, C, *spatial) of :func:`levels_of`; of a released layer list what the convolution gives, before norm.

    Of a planned network, whose convolutions, norms and activations are one block, what the stage gives.
    """
    if isinstance(network, AnatomixUNet):
        return network.activations(image, ANATOMIX_LAYERS)
    skips = network.encoder(image)
    decoded = decode(network.decoder, skips)[-OF_DECODER:]
    return [*skips[max(0, len(skips) - (MAPS - len(decoded))) :], *decoded]
