"""Linear maps that act along one axis at a time, as matrices: resizing, blurring, interpolation of coarse noise.

One batched matrix product per axis is fast on CPU and GPU, and every element of a batch has its own matrices.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_invariance.common.device_copies import copy_to


def along_axes(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """y = (M_1 x M_2 x ...) x for x (B, C, *spatial) and one matrix (B or 1, n_out, n_in) per spatial axis."""
    for axis, matrix in enumerate(matrices, start=2):
        own = copy_to(x.device, matrix, x.dtype)
        shape = list(x.shape)
        shape[axis] = matrix.shape[1]
        if axis == x.ndim - 1:
            flat = x.reshape(x.shape[0], -1, x.shape[-1])
            x = (flat @ own.mT).reshape(shape)
        else:
            before = x.shape[0], math.prod(x.shape[1:axis])
            x = (own[:, None] @ x.reshape(*before, x.shape[axis], -1)).reshape(shape)
    return x


def linear_matrix(source: int, target: int) -> Tensor:
    """Linear interpolation (target, source) between voxel centres; constant beyond the outer centres."""
    position = ((torch.arange(target) + 0.5) * source / target - 0.5).clamp(0, source - 1)
    below = position.floor().long().clamp(max=max(source - 2, 0))
    weight = position - below
    matrix = torch.zeros(target, source)
    rows = torch.arange(target)
    matrix[rows, below] = 1 - weight
    matrix[rows, (below + 1).clamp(max=source - 1)] += weight
    return matrix


def nearest_matrix(source: int, target: int, exact: bool = True) -> Tensor:
    """Nearest voxel (target, source): by voxel centres, or by lower corners if not ``exact``."""
    position = (torch.arange(target) + (0.5 if exact else 0.0)) * source / target
    matrix = torch.zeros(target, source)
    matrix[torch.arange(target), position.floor().long().clamp(max=source - 1)] = 1
    return matrix


def gaussian_matrix(n: int, sigma: float) -> Tensor:
    """Blur (n, n) by a normal density integrated over voxels, truncated at 4 sigma, sum 1; the border is repeated."""
    matrix = torch.zeros(n, n)
    rows = torch.arange(n)
    taps = _gaussian_taps(sigma)
    reach = len(taps) // 2
    for offset, tap in enumerate(taps, start=-reach):
        matrix.index_put_((rows, (rows + offset).clamp(0, n - 1)), torch.tensor(tap), accumulate=True)
    return matrix


def _gaussian_taps(sigma: float) -> list[float]:
    if sigma <= 0:
        return [1.0]
    reach = int(max(4 * sigma, 0.5) + 0.5)

    def below(x: float) -> float:
        return 0.5 * math.erf(x / (sigma * math.sqrt(2)))

    taps = [below(i + 0.5) - below(i - 0.5) for i in range(-reach, reach + 1)]
    return [tap / sum(taps) for tap in taps]


def smooth_noise(grids: Sequence[Sequence[Tensor]], size: Sequence[int], device: torch.device) -> Tensor:
    """Sum over scales of coarse noise, interpolated linearly.

    ``grids``: a list per element with one grid (C, ...) per scale. Returns (B, C, *size).
    """
    total = torch.zeros((), device=device)
    for same_scale in zip(*grids, strict=True):
        grid = copy_to(device, torch.stack(same_scale))
        total = total + along_axes(grid, [linear_matrix(g, n)[None] for g, n in zip(grid.shape[2:], size, strict=True)])
    return total
