"""Small planned networks (three stages with 4, 8 and 16 features), and checkpoints of them."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_invariance.networks.planned import Architecture, unique_tensors
from nnunet_invariance.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

FLAT, FULL = [1, 3, 3], [3, 3, 3]  # kernel sizes
NETWORKS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}


def architecture(
    network: str = "PlainConvUNet",
    channels: int = 1,
    classes: int = 2,
    features: tuple[int, ...] = (4, 8, 16),
    dimensions: int = 3,
) -> Architecture:
    stages = len(features)
    arguments = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": [[3] * dimensions] * stages,
        "strides": [[1] * dimensions] + [[2] * dimensions] * (stages - 1),
        NETWORKS[network]: [1, 2, 2, 2][:stages],
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    required = ("conv_op", "norm_op", "dropout_op", "nonlin")
    return Architecture(
        f"dynamic_network_architectures.architectures.unet.{network}", arguments, required, channels, classes
    )


def build(planned: Architecture, seed: int) -> nn.Module:
    """The network with random values in every tensor, including norms and biases."""
    network = planned.build()
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.parameters():
        tensor.data = torch.randn(tensor.shape, generator=generator) * 0.1
    return network


def metadata(planned: Architecture, **changes: Any) -> dict[str, Any]:
    plain = {
        "method": "alice",
        "finished": True,
        "step": 10_000,
        "total_steps": 10_000,
        "architecture": planned.to_dict(),
        "channel_names": [f"MRI{i}" for i in range(planned.input_channels)],
        "normalization_schemes": ["ZScoreNormalization"] * planned.input_channels,
        "spacing": [1.0, 1.0, 1.0],
        "patch_size": [32, 32, 32],
        "dataset_name": "Dataset777_Tiny",
        "plans_name": "nnUNetPlans",
        "configuration": "3d_fullres",
        "data_identifier": "nnUNetPlans_3d_fullres",
        "plans": {},
        "pretrained": ["encoder", "decoder"],
        "options": {"steps": 10},
        "manifest_sha256": "0" * 64,
        "versions": {"torch": torch.__version__},
        "citation": "arXiv:0000.00000",
        "parent_sha256": None,
    }
    return {**plain, **changes}


def tensors(planned: Architecture, teacher: bool = True) -> dict[str, Tensor]:
    """Tensors of a student with seed 1, a teacher with seed 2, and one head."""
    result = {f"network.{name}": t.detach() for name, t in unique_tensors(build(planned, 1)).items()}
    if teacher:
        result |= {f"teacher.{name}": t.detach() for name, t in unique_tensors(build(planned, 2)).items()}
    return {**result, "heads.centre": torch.arange(3.0)}


def write(path: Path, planned: Architecture | None = None, teacher: bool = True, **changes: Any) -> Path:
    planned = planned or architecture()
    save_checkpoint(path, tensors(planned, teacher), metadata(planned, **changes))
    return path


def checkpoint(path: Path, planned: Architecture | None = None, teacher: bool = True, **changes: Any) -> Checkpoint:
    return load_checkpoint(write(path, planned, teacher, **changes))


def with_kernels(planned: Architecture, kernels: list[list[int]]) -> Architecture:
    """A copy of the architecture with these kernel sizes per stage."""
    planned = copy.deepcopy(planned)
    planned.arch_kwargs["kernel_sizes"] = kernels
    return planned


def anisotropic(channels: int) -> Architecture:
    """A network whose first stage has flat kernels and whose second stage does not downsample the first axis."""
    planned = architecture(channels=channels)
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    kernels = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    return replace(planned, arch_kwargs={**planned.arch_kwargs, "strides": strides, "kernel_sizes": kernels})
