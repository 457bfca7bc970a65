"""Blur and low resolution as one matrix per image and axis, so that each image of a batch has its own strength.

A matrix product along an axis has the same shape for every strength, and takes less time than a convolution.
"""

import math

import torch
from torch import Tensor


def blur_matrix(sigma: Tensor, size: int, reach: int, truncate: float) -> Tensor:
    """Matrices (K, ``size``, ``size``) that blur an axis with reflected borders.

    Args:
        sigma: (K,) standard deviations in voxels.
        size: length of the axis.
        reach: half the width of the widest kernel, in voxels (:func:`kernel_reach`).
        truncate: a kernel has the odd width that is nearest to ``truncate * sigma + 0.5``.
    """
    offsets = torch.arange(-reach, reach + 1, device=sigma.device)
    half = ((truncate * sigma + 0.5) / 2).floor()
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]).square()) * (offsets.abs() <= half[:, None])
    weights = weights / weights.sum(1, keepdim=True)
    voxels = torch.arange(size, device=sigma.device)
    read = (voxels[:, None] + offsets).abs()
    read = (size - 1 - (size - 1 - read).abs()).clamp(min=0)
    taps = (read[:, :, None] == voxels).to(sigma.dtype)  # (size, taps, size)
    return torch.einsum("ko,iov->kiv", weights, taps)


def kernel_reach(sigma: float, truncate: float) -> int:
    """Half the width of the kernel of a standard deviation, in voxels.

    >>> [kernel_reach(sigma, 6.0) for sigma in (0.5, 0.6, 1.0)]
    [1, 2, 3]
    """
    return int((truncate * sigma + 0.5) // 2)


def low_resolution_matrix(scale: Tensor, size: int) -> Tensor:
    """Matrices (K, ``size``, ``size``) that sample an axis at fewer voxels and interpolate it back linearly.

    Args:
        scale: (K,) the number of voxels relative to ``size``.
        size: length of the axis.
    """
    coarse = (size * scale).round().clamp(min=1)[:, None]
    voxels = torch.arange(size, device=scale.device)
    place = ((voxels + 0.5) * (coarse / size) - 0.5).clamp(min=0)
    low = place.floor()
    high = torch.minimum(low + 1, coarse - 1)
    weight = (place - low)[..., None]

    def nearest(index: Tensor) -> Tensor:
        read = ((index + 0.5) * (size / coarse)).floor().clamp(max=size - 1)
        return (read[..., None] == voxels).to(scale.dtype)

    return nearest(low) * (1 - weight) + nearest(high) * weight


def along_axis(images: Tensor, matrices: Tensor, axis: int) -> Tensor:
    """Apply one matrix per image, (K, n, n), along a spatial axis of length n of images (K, *spatial)."""
    count, *size = images.shape
    if axis == len(size) - 1:
        return (images.reshape(count, -1, size[-1]) @ matrices.mT).view(images.shape)
    before = images.reshape(count, math.prod(size[:axis]), size[axis], -1)
    return (matrices[:, None] @ before).view(images.shape)
