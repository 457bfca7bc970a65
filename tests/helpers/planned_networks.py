"""Small networks as nnU-Net plans them, with strides that the test chooses."""

from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.networks.stock import REQUIRES_IMPORT, unet_arguments


def architecture(kind="PlainConvUNet", strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)), channels=1):
    """A small planned network; stage i has 4 * 2^i features."""
    stages = len(strides)
    counts = {"n_conv_per_stage": [1] * stages} if kind == "PlainConvUNet" else {"n_blocks_per_stage": [1] * stages}
    features = [4 * 2**i for i in range(stages)]
    kwargs = unet_arguments(features, **counts, n_conv_per_stage_decoder=[1] * (stages - 1))
    kwargs["strides"] = [list(s) for s in strides]
    name = f"dynamic_network_architectures.architectures.unet.{kind}"
    return Architecture(name, kwargs, REQUIRES_IMPORT, channels, channels)
