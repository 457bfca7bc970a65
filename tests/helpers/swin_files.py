"""Checkpoint files of MONAI's SwinUNETR, VoCo and PUIR, with networks of 12 channels."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from nnunet_invariance.networks.architectures.swin_unetr import monai_network
from nnunet_invariance.weights.importers.puir_swin import layout

WIDTH = 12


@cache
def theirs(version: int = 1, channels: int = 1, classes: int = 3) -> nn.Module:
    """MONAI's network with random values in every tensor."""
    network = monai_network(channels, classes, WIDTH, version).eval()
    generator = torch.Generator().manual_seed(version)
    for tensor in network.parameters():
        tensor.data = torch.randn(tensor.shape, generator=generator) * 0.1
    return network


def transformer(version: int = 1, channels: int = 1) -> dict[str, Tensor]:
    return dict(theirs(version, channels).swinViT.state_dict())


def bare(name: str) -> str:
    """The name in model_swinvit.pt: without the name of the transformer, and with other names in its MLPs."""
    return "module." + name.replace("mlp.linear", "mlp.fc")


HEADS = {"rotation_head.weight": torch.zeros(4, 2), "norm.weight": torch.zeros(2), "mask_token": torch.zeros(1)}

#: Variants of MONAI's files; each names the tensors differently.
MONAI: dict[str, Callable[[], dict]] = {
    "model_swinvit": lambda: {
        "state_dict": {bare(n): t for n, t in transformer().items()} | {f"module.{n}": t for n, t in HEADS.items()}
    },
    "swin_vit": lambda: {
        "epoch": 3,
        "state_dict": {f"swin_vit.{name}": t for name, t in transformer().items()} | HEADS,
    },
    "whole": lambda: dict(theirs().state_dict()),
}

VOCO: dict[str, Callable[[], dict]] = {
    "student": lambda: {
        "state_dict": {f"module.student.{n}": t for n, t in encoders().items()}
        | {f"module.teacher.{n}": t + 1 for n, t in encoders().items()}
    },
    "backbone": lambda: {f"backbone.{n}": t for n, t in encoders().items()} | {"proj_head.weight": torch.zeros(2)},
    "module": lambda: {"student": {f"module.backbone.{n}": t for n, t in encoders().items()}, "epoch": 1},
    "whole": lambda: dict(theirs(2).state_dict()),
}


def encoders() -> dict[str, Tensor]:
    """The tensors that VoCo trains: the transformer and the convolutions of the encoder."""
    return {n: t for n, t in theirs(2).state_dict().items() if not n.startswith(("decoder", "out."))}


def released_puir(width: int = WIDTH) -> dict[str, Tensor]:
    """The tensors of the release with random values, and indices as MONAI computes them."""
    generator = torch.Generator().manual_seed(5)
    index = transformer()["layers1.0.blocks.0.attn.relative_position_index"]
    return {
        name: index.clone() if name.endswith("_index") else torch.randn(shape, generator=generator) * 0.05
        for name, shape in layout(width).items()
    }


def save(content: dict, path: Path) -> Path:
    torch.save(content, path)
    return path
