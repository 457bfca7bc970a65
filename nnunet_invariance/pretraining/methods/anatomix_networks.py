"""The networks that ``pretrain anatomix`` trains without a data set: the paper's, and two of nnU-Net."""

from collections.abc import Sequence
from typing import Any

from nnunet_invariance.networks.architectures.anatomix_unet import NETWORK, arch_kwargs
from nnunet_invariance.pretraining.engine.method import NetworkPreset


def plain_conv_unet(features: Sequence[int], side: int) -> NetworkPreset:
    """The network that nnU-Net plans for isotropic images: a PlainConvUNet whose stages halve all axes.

    >>> plain_conv_unet((8, 16), side=32).patch_size
    (32, 32, 32)

    Args:
        features: channels of each stage.
        side: side of the cubic patch, voxels.
    """
    stages = len(features)
    arguments: dict[str, Any] = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    return NetworkPreset(architecture, (side, side, side), "ZScoreNormalization")


_ANATOMIX = {"network_class_name": NETWORK, "arch_kwargs": arch_kwargs("anatomix"), "_kw_requires_import": []}
#: The network of arXiv 2411.02372, and PlainConvUNets with four and six stages, by name.
NETWORK_PRESETS = {
    "anatomix": NetworkPreset(_ANATOMIX, (128, 128, 128), "RescaleTo01Normalization"),
    "plain4": plain_conv_unet((32, 64, 128, 256), 48),
    "plain6": plain_conv_unet((32, 64, 128, 256, 320, 320), 128),
}
