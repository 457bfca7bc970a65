"""Labels on the device: interpolation, and the targets of the segmentation loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Label of voxels in padding and outside of nnU-Net's nonzero mask.
OUTSIDE = -1
LABELS_AT_ONCE = 8  # bounds the memory
BONUS = 0.03  # of the nearest neighbour's label; less than the steps of a greatest share, which is 125 or more
SHARE = 1000  # an interpolated indicator in float16 has steps of 1/2000 near 1/2, as in batchgeneratorsv2


def warp_labels(labels: Tensor, grid: Tensor, values: Sequence[int]) -> Tensor:
    """Interpolate labels: the label with the greatest share of the neighbours of a point.

    If the nearest neighbour's label has the greatest share too, it is chosen, otherwise the smallest such label.
    Outside of the patch all labels are :data:`OUTSIDE`.

    Args:
        labels: (K, M, *spatial) integers.
        grid: as for ``torch.nn.functional.grid_sample`` with ``align_corners=False``.
        values: all values that ``labels`` may have; others are never chosen.
    """
    nearest = F.grid_sample((labels - OUTSIDE).float(), grid, mode="nearest", align_corners=False).add_(OUTSIDE)
    known = sorted({*values} - {OUTSIDE})
    best, rest = torch.zeros_like(nearest), torch.full_like(nearest, SHARE)
    winner = torch.full_like(nearest, OUTSIDE)
    flag = torch.empty_like(nearest)  # 0 or 1 in float32: masked_fill_ with a boolean mask is slow on a CPU
    for start in range(0, len(known), LABELS_AT_ONCE):
        chunk = known[start : start + LABELS_AT_ONCE]
        for value, share in zip(chunk, _shares(labels, grid, chunk), strict=True):
            rest.sub_(share)
            share = _rounded(share).add_(torch.eq(nearest, value, out=flag), alpha=BONUS)
            winner.addcmul_(torch.gt(share, best, out=flag), value - winner)
            torch.maximum(best, share, out=best)
    # The remaining share is the one of OUTSIDE, the smallest label.
    rest = _rounded(rest).add_(torch.eq(nearest, OUTSIDE, out=flag), alpha=BONUS)
    winner.addcmul_(torch.ge(rest, best, out=flag), OUTSIDE - winner)
    return winner.to(labels.dtype)


def _shares(labels: Tensor, grid: Tensor, values: Sequence[int]) -> Sequence[Tensor]:
    """Share of each value around each point, in thousandths."""
    batch, channels, *size = labels.shape
    indicators = torch.empty((batch, len(values), channels, *size), device=labels.device)
    for index, value in enumerate(values):
        torch.eq(labels, value, out=indicators[:, index])
    shares = F.grid_sample(indicators.flatten(1, 2), grid, mode="bilinear", align_corners=False).mul_(SHARE)
    return shares.unflatten(1, (len(values), channels)).unbind(1)


def _rounded(share: Tensor) -> Tensor:
    """Round as float16, so that nearly equal shares are equal."""
    return share.half().float()


@dataclass(frozen=True)
class Targets:
    """What nnU-Net makes of the labels for its loss.

    Attributes:
        replaced: pairs of a label and the label that replaces it.
        regions: labels of each region that the network segments; None if it segments labels.
        scales: size of each output of the network relative to the patch, per axis; None without deep supervision.

    >>> [part.shape[2:] for part in Targets((), None, ((1.0, 1.0), (0.5, 0.5)))(torch.zeros(1, 1, 8, 8))]
    [torch.Size([8, 8]), torch.Size([4, 4])]
    """

    replaced: tuple[tuple[int, int], ...]
    regions: tuple[tuple[int, ...], ...] | None
    scales: tuple[tuple[float, ...], ...] | None

    def __call__(self, labels: Tensor) -> Tensor | list[Tensor]:
        """Labels (B, 1, *spatial) to the target, one per output with deep supervision."""
        for old, new in self.replaced:
            labels = labels.masked_fill(labels == old, new)
        if self.regions is not None:
            labels = torch.cat([_in_region(labels, region) for region in self.regions], 1)
        if self.scales is None:
            return labels
        return [_shrink(labels, scale) for scale in self.scales]


def _in_region(labels: Tensor, region: Sequence[int]) -> Tensor:
    inside = torch.zeros_like(labels, dtype=torch.bool)
    for value in region:
        inside |= labels == value
    return inside


def _shrink(labels: Tensor, scale: Sequence[float]) -> Tensor:
    if all(factor == 1 for factor in scale):
        return labels
    size = [round(n * factor) for n, factor in zip(labels.shape[2:], scale, strict=True)]
    return F.interpolate(labels.float(), size, mode="nearest-exact").to(labels.dtype)
