"""Smooth random fields."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.common.device_copies import copy_to

LINEAR = {2: "bilinear", 3: "trilinear"}


def sample_control_points(shape: Sequence[int], generator: torch.Generator, points: int = 5) -> Tensor:
    """N(0, 1) at a grid of control points: (B, 1, *grid) for images (B, C, *spatial), at most ``points`` per axis."""
    return torch.randn(shape[0], 1, *(min(points, size) for size in shape[2:]), generator=generator)


def interpolate(points: Tensor, like: Tensor) -> Tensor:
    """Interpolate control points (B, 1, *grid) linearly over the extent of images (B, C, *spatial).

    Returns (B, 1, *spatial), float32.
    """
    size, mode = like.shape[2:], LINEAR[like.ndim - 2]
    return F.interpolate(copy_to(like.device, points, torch.float32), size=size, mode=mode, align_corners=True)
