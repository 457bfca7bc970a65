"""The networks that ``pretrain anatomix`` trains without a data set: the paper's, and two of nnU-Net."""

from collections.abc import Sequence

from nnunet_invariance.networks.architectures.anatomix_unet import NETWORK, arch_kwargs
from nnunet_invariance.networks.stock import PLAIN4, plain_conv_unet
from nnunet_invariance.pretraining.engine.method import NetworkPreset


def stock_preset(features: Sequence[int], side: int) -> NetworkPreset:
    """A PlainConvUNet as nnU-Net plans it, for cubic patches of ``side`` voxels.

    >>> stock_preset((8, 16), side=32).patch_size
    (32, 32, 32)
    """
    return NetworkPreset(plain_conv_unet(features), (side, side, side), "ZScoreNormalization")


_ANATOMIX = {"network_class_name": NETWORK, "arch_kwargs": arch_kwargs("anatomix"), "_kw_requires_import": []}
#: The network of arXiv 2411.02372, and PlainConvUNets with four and six stages, by name.
NETWORK_PRESETS = {
    "anatomix": NetworkPreset(_ANATOMIX, (128, 128, 128), "RescaleTo01Normalization"),
    "plain4": stock_preset(PLAIN4, 48),
    "plain6": stock_preset((*PLAIN4, 320, 320), 128),
}
