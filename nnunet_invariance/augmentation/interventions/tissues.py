"""Split each label into tissues by intensity, because organ labels leave the rest of the body one class."""

import torch
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import unit_range
from nnunet_invariance.common.index_sums import sum_by_index

BINS = 256
BACKGROUND = 6  # clusters in label 0
FOREGROUND = 2  # clusters in every other label
ITERATIONS = 10


def tissue_count(classes: int) -> int:
    """Number of tissues of ``classes`` labels."""
    return BACKGROUND + FOREGROUND * (classes - 1)


def region_index(regions: Tensor, count: int) -> Tensor:
    """Make the regions (B, C, *spatial) in [0, count) unique over samples and channels: r + (b C + c) count."""
    batch, channels = regions.shape[:2]
    offset = torch.arange(batch * channels, device=regions.device) * count
    return regions + offset.view(batch, channels, *[1] * (regions.ndim - 2))


def region_histogram(unit: Tensor, regions: Tensor, count: int) -> Tensor:
    """Histogram of each region over 256 values in [0, 1]: (B, C, count, 256) float32."""
    bins = to_bins(unit) + region_index(regions, count) * BINS
    batch, channels = unit.shape[:2]
    size = batch * channels * count * BINS
    ones = torch.ones(bins.numel(), device=bins.device)
    return sum_by_index(bins.flatten(), ones, size).view(batch, channels, count, BINS)


def region_range(image: Tensor, regions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each region, (B, C, count) each; 0 where a region is empty."""
    index, values = region_index(regions, count).flatten(), image.flatten()
    empty = image.new_zeros(image.shape[0] * image.shape[1] * count)
    low, high = (empty.scatter_reduce(0, index, values, how, include_self=False) for how in ("amin", "amax"))
    return low.view(*image.shape[:2], count), high.view(*image.shape[:2], count)


def to_bins(unit: Tensor) -> Tensor:
    """Values in [0, 1] as integers 0 to 255, to the nearest."""
    return (unit * (BINS - 1)).round().long()


def find_tissues(image: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Split each label by one-dimensional k-means of its intensities: (B, C, *spatial) int64.

    There are six clusters in label 0 and two in every other, per channel, numbered label after label. Lloyd's
    iterations run on a histogram of 256 bins, so that they cost nothing compared with the counting. They start at the
    quantiles (k + 1/2) / clusters of a label.
    """
    unit = unit_range(image)
    labels = labels.expand_as(image)
    histogram = region_histogram(unit, labels, classes)
    clusters = torch.cat(
        (
            _kmeans(histogram[:, :, :1], BACKGROUND),
            _kmeans(histogram[:, :, 1:], FOREGROUND) + BACKGROUND,
        ),
        dim=2,
    )
    first = torch.arange(classes, device=image.device).sub(1).clamp(min=0) * FOREGROUND
    table = clusters + first[:, None]
    return table.flatten()[region_index(labels, classes) * BINS + to_bins(unit)]


def _kmeans(histogram: Tensor, clusters: int) -> Tensor:
    """The nearest centre of each bin: (..., 256) counts to (..., 256) int64."""
    values = torch.arange(BINS, device=histogram.device, dtype=histogram.dtype)
    share = histogram.cumsum(-1) / histogram.sum(-1, keepdim=True).clamp(min=1)
    quantiles = (torch.arange(clusters, device=histogram.device, dtype=histogram.dtype) + 0.5) / clusters
    centres = (share[..., None, :] < quantiles[:, None]).sum(-1).clamp(max=BINS - 1).to(histogram.dtype)
    for _ in range(ITERATIONS):
        nearest = _nearest(values, centres)
        member = torch.nn.functional.one_hot(nearest, clusters).to(histogram.dtype) * histogram[..., None]
        mass = member.sum(-2)
        mean = (member * values[:, None]).sum(-2) / mass.clamp(min=1)
        centres = torch.where(mass > 0, mean, centres)  # a cluster without members stays where it is
    return _nearest(values, centres)


def _nearest(values: Tensor, centres: Tensor) -> Tensor:
    return (values[:, None] - centres[..., None, :]).abs().argmin(-1)
