"""Embeddings at chosen positions of a feature map: which stage, which positions, and the head."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def contrast_stage(patch_size: Sequence[int], strides: Sequence[Sequence[int]], positions: int) -> int:
    """Index of the deepest encoder stage whose map of one patch still has ``positions`` positions.

    Deeper maps are coarser, and below that number their receptive fields overlap so much that negatives are near copies
    of the positive. With 256 positions and a 128^3 patch this is the 8^3 map of nnU-Net's default plans.

    Args:
        patch_size: in voxels.
        strides: cumulative strides of each stage, in voxels per axis, finest first.
        positions: wanted number; where no stage has as many, the finest one is taken.
    """
    sizes = [math.prod(p // s for p, s in zip(patch_size, stage, strict=True)) for stage in strides]
    return max((stage for stage, size in enumerate(sizes) if size >= positions), default=0)


class Positions(NamedTuple):
    """Positions of a feature map, the same in every view.

    Attributes:
        index: (B, N) int64, into the flattened spatial axes.
        counts: (B, N) bool, False where a sample has fewer than N positions with image content.
    """

    index: Tensor
    counts: Tensor


def sample_positions(
    content: Tensor,
    map_size: Sequence[int],
    count: int,
    generator: torch.Generator | None = None,
    shared: bool = False,
) -> Positions:
    """Draw positions uniformly and without replacement among those that see image content.

    A position is drawn only if at least half of the voxels under it are content.

    Args:
        content: (B, 1, *spatial), 1 in the image and 0 in padding, on the CPU.
        map_size: spatial size of the feature map.
        count: N; fewer are drawn where the map has fewer.
        generator: of the CPU.
        shared: one draw for all samples, among the positions that any of them sees.
    """
    inside = F.interpolate(content, size=tuple(map_size), mode="area").flatten(1) >= 0.5
    drawn = inside.any(0, keepdim=True) if shared else inside
    order = torch.rand(drawn.shape, generator=generator).masked_fill(~drawn, -1)
    index = order.topk(min(count, order.shape[1]), dim=1).indices.expand(len(inside), -1)
    return Positions(index, inside.gather(1, index))


def gather_positions(feature_map: Tensor, index: Tensor) -> Tensor:
    """(B, C, *spatial) and (B, N) to (B, N, C)."""
    flat = feature_map.flatten(2)
    return flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2)


class ProjectionHead(nn.Sequential):
    """Linear, layer norm over channels, ReLU, linear: (..., ``channels``) to (..., ``features``).

    It is applied to gathered positions only, so its cost does not depend on the size of the map. Layer norm in place of
    ICMSeg's batch norm (arXiv 2411.05223), because batches in 3-D are too small for batch statistics.
    """

    def __init__(self, channels: int, features: int = 128) -> None:
        super().__init__(
            nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU(inplace=True), nn.Linear(channels, features)
        )


class ContrastHead(nn.Sequential):
    """The head of anatomix (arXiv 2411.02372): three bias-free linear layers with batch norm: (M, C) to (M, 256).

    Batch norm over the M gathered positions of both views, thousands of rows; it is dropped after pre-training.
    """

    def __init__(self, channels: int, features: int = 256) -> None:
        layers: list[nn.Module] = []
        for inputs in (channels, features):
            layers += [nn.Linear(inputs, features, bias=False), nn.BatchNorm1d(features), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Linear(features, features, bias=False), nn.BatchNorm1d(features, affine=False))
