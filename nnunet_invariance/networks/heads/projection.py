"""Embeddings at chosen positions of a feature map: which stage, which positions, and the head."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.common.device_copies import copy_to


def contrast_stage(patch_size: Sequence[int], strides: Sequence[Sequence[int]], num_positions: int) -> int:
    """Index of the deepest encoder stage whose map of one patch has at least ``num_positions`` positions.

    In deeper maps, the receptive fields of neighbours overlap so much that negatives are near copies of the positive.
    With 256 positions and a patch of 128^3 voxels this is the 8^3 map of nnU-Net's default plans.

    >>> contrast_stage((128, 128, 128), [(n, n, n) for n in (1, 2, 4, 8, 16, 32)], 256)
    4

    Args:
        patch_size: in voxels.
        strides: cumulative strides of each stage, in voxels per axis, finest first.
        num_positions: the number; if no stage has as many, the finest stage is returned.
    """
    sizes = [math.prod(p // s for p, s in zip(patch_size, stage, strict=True)) for stage in strides]
    return max((stage for stage, size in enumerate(sizes) if size >= num_positions), default=0)


class Positions(NamedTuple):
    """Sampled positions of a feature map, the same in every view.

    Attributes:
        indices: (B, N) int64, into the flattened spatial axes.
        valid_mask: (B, N) bool, False where a sample has fewer than N positions inside the image.
    """

    indices: Tensor
    valid_mask: Tensor


def sample_positions(
    valid_mask: Tensor,
    map_size: Sequence[int],
    num_positions: int,
    generator: torch.Generator | None = None,
    shared: bool = False,
) -> Positions:
    """Sample positions inside the image uniformly and without replacement.

    A position is inside if at least half of the voxels under it are valid.

    >>> sample_positions(torch.ones(2, 1, 8, 8), (4, 4), num_positions=5).indices.shape
    torch.Size([2, 5])

    Args:
        valid_mask: (B, 1, *spatial) float, 1 in the image and 0 in padding.
        map_size: spatial size of the feature map.
        num_positions: N; a smaller map gives as many as it has.
        generator: on the CPU.
        shared: the same positions for all samples, among those that are inside in any sample.
    """
    inside = F.interpolate(valid_mask, size=tuple(map_size), mode="area").flatten(1) >= 0.5
    allowed = inside.any(0, keepdim=True) if shared else inside
    drawn = copy_to(allowed.device, torch.rand(allowed.shape, generator=generator))
    order = drawn.masked_fill(~allowed, -1)
    indices = order.topk(min(num_positions, order.shape[1]), dim=1).indices.expand(len(inside), -1)
    return Positions(indices, inside.gather(1, indices))


def gather_positions(feature_map: Tensor, indices: Tensor) -> Tensor:
    """Features (B, N, C) of a map (B, C, *spatial) at indices (B, N) into its flattened spatial axes."""
    flat = feature_map.flatten(2)
    return flat.gather(2, indices[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2)


class ProjectionHead(nn.Sequential):
    """Linear, layer norm over channels, ReLU, linear: (..., ``channels``) to (..., ``features``).

    It is applied to sampled positions only, so its cost does not depend on the size of the map. It has layer norm where
    ICMSeg has batch norm (arXiv 2411.05223), because batches in 3-D are too small for batch statistics.

    >>> ProjectionHead(32)(torch.zeros(2, 10, 32)).shape
    torch.Size([2, 10, 128])
    """

    def __init__(self, channels: int, features: int = 128) -> None:
        super().__init__(
            nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU(inplace=True), nn.Linear(channels, features)
        )


class ContrastHead(nn.Sequential):
    """Head of anatomix (arXiv 2411.02372): three bias-free linear layers with batch norm, (M, C) to (M, 256).

    The batch statistics are over the M sampled positions of both views, thousands of rows. Pre-training discards the
    head at its end.

    >>> ContrastHead(32)(torch.randn(10, 32)).shape
    torch.Size([10, 256])
    """

    def __init__(self, channels: int, features: int = 256) -> None:
        layers: list[nn.Module] = []
        for inputs in (channels, features):
            layers += [nn.Linear(inputs, features, bias=False), nn.BatchNorm1d(features), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Linear(features, features, bias=False), nn.BatchNorm1d(features, affine=False))
