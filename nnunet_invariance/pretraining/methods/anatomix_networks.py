"""The networks that ``pretrain anatomix`` trains without a data set: the paper's, and four of nnU-Net."""

from typing import Any

from nnunet_invariance.networks.architectures.anatomix_unet import NETWORK, arch_kwargs
from nnunet_invariance.networks.stock import PLAIN4, RESENC_BLOCKS, plain_conv_unet, residual_encoder_unet
from nnunet_invariance.pretraining.engine.method import NetworkPreset


def stock_preset(architecture: dict[str, Any], side: int) -> NetworkPreset:
    """A network as nnU-Net plans it, for cubic patches of ``side`` voxels.

    >>> stock_preset(plain_conv_unet((8, 16)), side=32).patch_size
    (32, 32, 32)
    """
    return NetworkPreset(architecture, (side, side, side), "ZScoreNormalization")


_ANATOMIX = {"network_class_name": NETWORK, "arch_kwargs": arch_kwargs("anatomix"), "_kw_requires_import": []}
#: The network of arXiv 2411.02372, PlainConvUNets with three, four and six stages, and the three finest stages of
#: nnU-Net's residual encoder presets, by name.
NETWORK_PRESETS = {
    "anatomix": NetworkPreset(_ANATOMIX, (128, 128, 128), "RescaleTo01Normalization"),
    "plain3": stock_preset(plain_conv_unet(PLAIN4[:3]), 48),
    "plain4": stock_preset(plain_conv_unet(PLAIN4), 48),
    "plain6": stock_preset(plain_conv_unet((*PLAIN4, 320, 320)), 128),
    "resenc3": stock_preset(residual_encoder_unet(PLAIN4[:3], RESENC_BLOCKS[:3]), 48),
}
