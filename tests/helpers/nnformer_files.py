"""A small nnFormer network, and checkpoint files with the tensor names of the released nnFormer weights."""

import torch

from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.plans.nnformer import NETWORK
from tests.helpers.small_checkpoints import build

SMALL = {"n_stages": 5, "features_per_stage": [8, 8, 16, 32, 64], "strides": [[1] * 3, *[[2] * 3] * 4]}


def small(axes=(2, 1, 0), channels=1):
    """A small nnFormer."""
    return Architecture(NETWORK, {**SMALL, "axes": list(axes)}, (), channels, 2)


def released_shapes(width=48, channels=1):
    """Names and shapes of the released encoder's tensors (docs/alice.md), without the unused mask token."""
    h, shapes = width // 2, {}
    for name, a, b in (
        ("proj1.conv1", h, channels),
        ("proj1.conv2", h, h),
        ("proj2.conv1", width, h),
        ("proj2.conv2", width, width),
    ):
        shapes |= {f"patch_embed.{name}.weight": (a, b, 3, 3, 3), f"patch_embed.{name}.bias": (a,)}
    norms = [
        ("patch_embed.proj1.norm1", h),
        ("patch_embed.proj1.norm2", h),
        ("patch_embed.proj2.norm1", width),
        ("patch_embed.norm", width),
    ]
    for stage, (window, c) in enumerate(zip((4, 4, 8, 4), (width, 2 * width, 4 * width, 8 * width), strict=True)):
        for block in range(2):
            at = f"layers.{stage}.blocks.{block}"
            norms += [(f"{at}.norm1", c), (f"{at}.norm2", c)]
            shapes[f"{at}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 3, c // 8)
            shapes[f"{at}.attn.relative_position_index"] = (window**3, window**3)
            for layer, a, b in (
                ("attn.qkv", 3 * c, c),
                ("attn.proj", c, c),
                ("mlp.fc1", 4 * c, c),
                ("mlp.fc2", c, 4 * c),
            ):
                shapes |= {f"{at}.{layer}.weight": (a, b), f"{at}.{layer}.bias": (a,)}
        if stage < 3:
            at = f"layers.{stage}.downsample"
            shapes |= {f"{at}.reduction.weight": (2 * c, c, 3, 3, 3), f"{at}.reduction.bias": (2 * c,)}
            norms.append((f"{at}.norm", c))
        norms.append((f"norm{stage}", c))
    return {**shapes, **{f"{n}.{kind}": (c,) for n, c in norms for kind in ("weight", "bias")}}


def released_index(window):
    """The position index as the release computes it: different offsets share rows."""
    places = torch.cartesian_prod(*[torch.arange(window)] * 3)
    offsets = places[:, None] - places[None] + window - 1
    return (offsets * torch.tensor([3 * window - 1, 2 * window - 1, 1])).sum(-1)


def released_state():
    """A state dict with the names of the release at an eighth of its width, and values of our network."""
    ours = build(small(), 5).encoder.state_dict()
    state = {}
    for name in released_shapes(8):
        value = ours[name.replace("norm", "norms.", 1) if name.startswith("norm") else name]
        if name.endswith("index"):
            value = released_index(round(len(value) ** (1 / 3)))
        state[f"model_down.{name}"] = value
    extra = {"model_down.mask_token": torch.zeros(1, 1, 8), "decoder.layers.0.Upsample.norm.weight": torch.ones(16)}
    return {**state, **extra}


def write_student(path, state):
    """Write a file like the one that Alice's extraction script writes; returns its path."""
    torch.save({**state, "module.head.mlp.0.weight": torch.ones(2, 2), "state_dict": {}}, path)
    return path
