"""Small networks as nnU-Net plans them, with strides that the test chooses."""

from nnunet_invariance.networks.planned import Architecture


def architecture(kind="PlainConvUNet", strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)), channels=1):
    """A small planned network; stage i has 4 * 2^i features."""
    stages = len(strides)
    module = "unet"
    counts = {"n_conv_per_stage": [1] * stages} if kind == "PlainConvUNet" else {"n_blocks_per_stage": [1] * stages}
    kwargs = {
        "n_stages": stages,
        "features_per_stage": [4 * 2**i for i in range(stages)],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [list(s) for s in strides],
        **counts,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name = f"dynamic_network_architectures.architectures.{module}.{kind}"
    return Architecture(name, kwargs, ("conv_op", "norm_op", "dropout_op", "nonlin"), channels, channels)
