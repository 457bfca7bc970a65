"""Blur and low resolution along an axis, with its own strength for each image of a batch."""

import torch
from torch import Tensor


def blur(images: Tensor, sigma: Tensor, axis: int, reach: int, truncate: float) -> Tensor:
    """Blur images (K, *spatial) along a spatial axis, with reflected borders.

    Args:
        sigma: (K,) standard deviations in voxels.
        reach: half the width of the widest kernel, in voxels (:func:`kernel_reach`).
        truncate: a kernel has the odd width that is nearest to ``truncate * sigma + 0.5``.
    """
    size = images.shape[axis + 1]
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    half = ((truncate * sigma + 0.5) / 2).floor()
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]).square()) * (offsets.abs() <= half[:, None])
    weights = weights / weights.sum(1, keepdim=True)
    read = torch.arange(-reach, size + reach, device=images.device).abs()
    read = (size - 1 - (size - 1 - read).abs()).clamp(min=0)
    padded = images.index_select(axis + 1, read)
    result = torch.zeros_like(images)
    for tap in range(len(offsets)):
        result.addcmul_(padded.narrow(axis + 1, tap, size), weights[:, tap].view(-1, *[1] * (images.ndim - 1)))
    return result


def kernel_reach(sigma: float, truncate: float) -> int:
    """Half the width of the kernel of a standard deviation, in voxels.

    >>> [kernel_reach(sigma, 6.0) for sigma in (0.5, 0.6, 1.0)]
    [1, 2, 3]
    """
    return int((truncate * sigma + 0.5) // 2)


def lower_resolution(images: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Sample images (K, *spatial) along a spatial axis at fewer voxels, and interpolate them back linearly.

    Args:
        scale: (K,) the number of voxels relative to the size of the axis.
    """
    size = images.shape[axis + 1]
    coarse = (size * scale).round().clamp(min=1)[:, None]
    place = ((torch.arange(size, device=images.device) + 0.5) * (coarse / size) - 0.5).clamp(min=0)
    low = place.floor()
    along = [len(images), *(size if other == axis else 1 for other in range(images.ndim - 1))]

    def nearest(index: Tensor) -> Tensor:
        read = ((index + 0.5) * (size / coarse)).floor().clamp(max=size - 1)
        return images.gather(axis + 1, read.long().view(along).expand_as(images))

    return torch.lerp(nearest(low), nearest(torch.minimum(low + 1, coarse - 1)), (place - low).view(along))
