"""The encoder of an anatomix U-Net as the plain encoder that nnU-Net's networks are made of."""

from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from torch import nn

from nnunet_invariance.networks.architectures.anatomix_unet import AnatomixEncoder, Design


def plain_conv_encoder(encoder: AnatomixEncoder) -> PlainConvEncoder:
    """A ``PlainConvEncoder`` that is the same function: pooling in front of a stage, reflected borders, same weights.

    nnU-Net's planned networks pool by strided convolutions and pad with zeros, so they cannot take these weights over;
    this encoder is for networks of one's own. Both share no memory. One image, or channels "averaged".
    """
    inputs = encoder.model["0"].in_channels
    plain = _empty(encoder.design, inputs)
    for kind in (nn.Conv3d, nn.BatchNorm3d if encoder.design.batch_norm else nn.InstanceNorm3d):
        theirs, ours = ([m for m in network.modules() if isinstance(m, kind)] for network in (encoder, plain))
        for source, target in zip(theirs, ours, strict=True):
            target.load_state_dict(source.state_dict())
    for convolution in (m for m in plain.modules() if isinstance(m, nn.Conv3d)):
        convolution.padding_mode = "reflect"
    return plain.train(encoder.training)


def _empty(design: Design, inputs: int) -> PlainConvEncoder:
    return PlainConvEncoder(
        inputs,
        n_stages=design.levels + 1,
        features_per_stage=[design.width * 2**level for level in range(design.levels + 1)],
        conv_op=nn.Conv3d,
        kernel_sizes=[[3, 3, 3]] * (design.levels + 1),
        strides=design.strides,
        n_conv_per_stage=[3] + [2] * design.levels,
        conv_bias=not design.batch_norm,
        norm_op=nn.BatchNorm3d if design.batch_norm else nn.InstanceNorm3d,
        norm_op_kwargs={"eps": design.eps, "affine": design.batch_norm},
        nonlin=nn.ReLU,
        nonlin_kwargs={"inplace": True},
        return_skips=True,
        pool="avg" if design.average else "max",
    )
