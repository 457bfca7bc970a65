"""A new level and contrast for each tissue; edges and texture stay."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import Domain, uniform, without_gradient
from nnunet_invariance.augmentation.interventions.tissues import find_tissues, region_index, tissue_count

POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
SEAM = 3  # voxels


@dataclass(frozen=True)
class Clusters:
    """New levels and factors of the tissues.

    Attributes:
        classes: number of labels.
        levels: (B, C, tissues), in standard deviations from the image's mean.
        scales: (B, C, tissues), negative where a tissue is inverted.
        kernel: size of the blur of the seams, voxels per axis.
    """

    classes: int
    levels: Tensor
    scales: Tensor
    kernel: tuple[int, ...]


def sample_clusters(domain: Domain, generator: torch.Generator) -> Clusters:
    """Draw levels U(-2, 2) and scales U(0.5, 1.5) of either sign."""
    table = (*domain.shape[:2], tissue_count(domain.classes))
    sign = torch.randint(2, table, generator=generator) * 2 - 1
    levels = uniform(table, -2, 2, generator)
    return Clusters(domain.classes, levels, uniform(table, 0.5, 1.5, generator) * sign, domain.kernel(SEAM))


@without_gradient
def apply_clusters(image: Tensor, labels: Tensor, draw: Clusters) -> Tensor:
    r""":math:`x' = \mu'_k + s_k (x - \mu_k)` in each tissue k, with its factor and offset blurred across the seams."""
    tissues = find_tissues(image, labels, draw.classes)
    count = draw.levels.shape[-1]
    index = region_index(tissues, count).flatten()
    size = draw.levels.numel()
    means = torch.bincount(index, image.flatten(), minlength=size) / torch.bincount(index, minlength=size).clamp(min=1)
    axes = tuple(range(2, image.ndim))
    std, mean = (value.flatten().repeat_interleave(count) for value in torch.std_mean(image, axes, correction=0))
    scales = draw.scales.to(image.device).flatten()
    offsets = mean + std * draw.levels.to(image.device).flatten() - scales * means
    factor, offset = (_blur(table[index].view_as(image), draw.kernel) for table in (scales, offsets))
    return factor * image + offset


def _blur(coefficient: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Mean over a small box; at the border over what is inside."""
    padding = [size // 2 for size in kernel]
    return POOL[len(kernel)](coefficient, kernel, 1, padding, count_include_pad=False)
