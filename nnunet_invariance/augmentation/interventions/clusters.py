"""A new level and contrast for each tissue; edges and texture are kept."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import Domain, TissueIntervention, uniform
from nnunet_invariance.augmentation.interventions.tissues import find_tissues, region_index, tissue_count
from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.common.index_sums import sum_by_index

POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
SEAM = 3  # voxels


@dataclass(frozen=True)
class ClustersParameters:
    """Parameters of :class:`Clusters`.

    Attributes:
        classes: number of labels.
        levels: (B, C, tissues), in standard deviations from the image's mean.
        scales: (B, C, tissues), negative where the contrast of a tissue is inverted.
        kernel: size of the blur at the borders of tissues, voxels per axis.
    """

    classes: int
    levels: Tensor
    scales: Tensor
    kernel: tuple[int, ...]


class Clusters(TissueIntervention[ClustersParameters]):
    r"""Give each tissue k, found by k-means within each label, a new mean and contrast.

    .. math:: x' = \mu'_k + s_k (x - \mu_k)

    The factor and the offset are blurred across the borders of tissues.

    >>> image, labels = torch.rand(2, 1, 16, 16), torch.ones(2, 1, 16, 16, dtype=torch.long)
    >>> Clusters()(image, labels, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 16, 16])
    """

    def sample(self, domain: Domain, generator: torch.Generator) -> ClustersParameters:
        """Sample levels U(-2, 2), and scales U(0.5, 1.5) with a random sign."""
        table = (*domain.shape[:2], tissue_count(domain.classes))
        sign = torch.randint(2, table, generator=generator) * 2 - 1
        levels = uniform(table, -2, 2, generator)
        scales = uniform(table, 0.5, 1.5, generator) * sign
        return ClustersParameters(domain.classes, levels, scales, domain.kernel(SEAM))

    def transform(self, image: Tensor, labels: Tensor, params: ClustersParameters) -> Tensor:
        """Find the tissues, and apply a factor and an offset to each."""
        tissues = find_tissues(image, labels, params.classes)
        count, size = params.levels.shape[-1], params.levels.numel()
        index = region_index(tissues, count).flatten()
        voxels = image.flatten()
        totals, counts = (sum_by_index(index, values, size) for values in (voxels, torch.ones_like(voxels)))
        means = totals / counts.clamp(min=1)
        axes = tuple(range(2, image.ndim))
        std, mean = (value.flatten().repeat_interleave(count) for value in torch.std_mean(image, axes, correction=0))
        scales = copy_to(image.device, params.scales).flatten()
        offsets = mean + std * copy_to(image.device, params.levels).flatten() - scales * means
        factor, offset = (_blur(table[index].view_as(image), params.kernel) for table in (scales, offsets))
        return factor * image + offset


def _blur(coefficient: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Average over a small box; at the border of the image, over the part of the box that is inside."""
    padding = [size // 2 for size in kernel]
    return POOL[len(kernel)](coefficient, kernel, 1, padding, count_include_pad=False)
