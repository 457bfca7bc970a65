"""Targets and losses of VoCo (Wu et al., CVPR 2024, arXiv 2402.17300).

Shapes: B regions, each with N = ``grid``³ base crops and K random crops; F features per crop.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def overlap_targets(origins: Tensor, size: Sequence[int], grid: int) -> Tensor:
    """The proportion of every random crop that lies in every base crop.

    Args:
        origins: first voxels (B, K, 3) of the random crops, counted from the first voxel of the region.
        size: voxels of a crop along each axis; base crops and random crops have the same size.
        grid: base crops along each axis; base crop (i, j, k) starts at voxel (i, j, k) · ``size`` of the region.

    Returns:
        Proportions (B, K, N) in [0, 1], which sum to 1 over the base crops.

    >>> overlap_targets(torch.tensor([[[0, 0, 1]]]), size=(4, 4, 4), grid=2)
    tensor([[[0.7500, 0.2500, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000]]])
    """
    position = origins / origins.new_tensor(size)  # in units of base crops
    index = torch.arange(grid, device=origins.device)
    z, y, x = (1 - (position.unsqueeze(-1) - index).abs()).clamp(min=0).unbind(2)
    return torch.einsum("bki,bkj,bkl->bkijl", z, y, x).flatten(2)


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarities (B, M, N) of features (B, M, F) and (B, N, F); negative values become 0."""
    return F.cosine_similarity(first.unsqueeze(2), second.unsqueeze(1), dim=-1).clamp(min=0)


def position_loss(prediction: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    r"""Mean distance of predicted and true overlaps, both (B, K, N); ``eps`` keeps the logarithm finite.

    .. math:: L = -\operatorname{mean} \log(1 - |y - p|)
    """
    return -(1 - (target - prediction).abs()).clamp(min=eps).log().mean()


def separation_loss(bases: Tensor) -> Tensor:
    """Mean similarity of different base crops of the same region; ``bases`` are features (B, N, F)."""
    different = ~torch.eye(bases.shape[1], dtype=torch.bool, device=bases.device)
    return similarity(bases, bases)[:, different].mean()


@torch.no_grad()
def correlation(prediction: Tensor, target: Tensor) -> Tensor:
    """Pearson correlation of predicted and true overlaps over all pairs of crops; 0 if all predictions are equal."""
    return F.cosine_similarity((prediction - prediction.mean()).flatten(), (target - target.mean()).flatten(), dim=0)
