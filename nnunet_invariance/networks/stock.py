"""Networks that nnU-Net plans for isotropic 3-D images, as the ``architecture`` entry of a plans file."""

from collections.abc import Sequence
from typing import Any

#: Arguments that are dotted paths of classes.
REQUIRES_IMPORT = ("conv_op", "norm_op", "dropout_op", "nonlin")
#: Channels of the four finest stages of every stock network.
PLAIN4 = (32, 64, 128, 256)
#: Residual blocks of the stages, finest first, of every residual encoder preset of nnU-Net; deeper ones have six.
RESENC_BLOCKS = (1, 3, 4, 6, 6, 6)


def unet_arguments(features: Sequence[int], **blocks: Any) -> dict[str, Any]:
    """Constructor arguments of a U-Net of nnU-Net whose stages halve all axes.

    >>> unet_arguments((8, 16), n_conv_per_stage=[2, 2], n_conv_per_stage_decoder=[2])["strides"]
    [[1, 1, 1], [2, 2, 2]]

    Args:
        features: channels of each stage, finest first.
        blocks: numbers of convolutions or residual blocks per stage, under the names of the network class.
    """
    stages = len(features)
    return {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        **blocks,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def plain_conv_unet(features: Sequence[int]) -> dict[str, Any]:
    """A PlainConvUNet with two convolutions per stage.

    >>> from nnunet_invariance.networks.planned import Architecture
    >>> Architecture.from_plans(plain_conv_unet((4, 8)), input_channels=1, num_classes=2).build().encoder.strides
    [[1, 1, 1], [2, 2, 2]]
    """
    stages = len(features)
    blocks = {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)}
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": unet_arguments(features, **blocks),
        "_kw_requires_import": list(REQUIRES_IMPORT),
    }


def residual_encoder_unet(features: Sequence[int], blocks: Sequence[int]) -> dict[str, Any]:
    """A ResidualEncoderUNet with these numbers of residual blocks, and one convolution per stage of the decoder.

    >>> from nnunet_invariance.networks.planned import Architecture
    >>> architecture = Architecture.from_plans(residual_encoder_unet((4, 8), (1, 2)), input_channels=1, num_classes=2)
    >>> [len(stage.blocks) for stage in architecture.build().encoder.stages]
    [1, 2]
    """
    blocks_by_name = {"n_blocks_per_stage": list(blocks), "n_conv_per_stage_decoder": [1] * (len(features) - 1)}
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": unet_arguments(features, **blocks_by_name),
        "_kw_requires_import": list(REQUIRES_IMPORT),
    }
