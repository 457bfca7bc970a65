"""Interventional pseudo-correlation augmentation: two styles in one image, blended smoothly (arXiv 2111.12525)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import Domain, Intervention, unit_range
from nnunet_invariance.augmentation.interventions.fields import interpolate, sample_control_points
from nnunet_invariance.augmentation.interventions.gin import GIN, GINParameters


@dataclass(frozen=True)
class IPAParameters:
    """Parameters of two GIN styles, and the control points (B, 1, *grid) of their blend, of unit norm per sample."""

    first: GINParameters
    second: GINParameters
    points: Tensor


class IPA(Intervention[IPAParameters]):
    r"""Blend two GIN styles :math:`g_1, g_2` by a smooth random field b (arXiv 2111.12525, GIN with IPA).

    .. math:: x' = b\, g_1(x) + (1 - b)\, g_2(x)

    b is the exponential of a smooth field, scaled to [0, 1] per sample. Distant structures then do not share a style,
    which breaks the correlations between them that an acquisition introduces. The field is interpolated linearly; the
    authors use B-splines. It does not read the labels.

    >>> image = torch.rand(2, 1, 16, 16)
    >>> IPA()(image, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 16, 16])
    """

    def sample(self, domain: Domain, generator: torch.Generator) -> IPAParameters:
        """Sample two GIN styles, and N(0, 1) control points that are then scaled to unit L2 norm per sample."""
        gin = GIN()
        first, second = gin.sample(domain, generator), gin.sample(domain, generator)
        points = sample_control_points(domain.shape, generator)
        # Without this scaling the exponential of a few large control points dominates, and b is near 0 almost
        # everywhere: the result is then nearly one GIN style. The authors' code scales the points in the same way.
        points = points / per_sample_norm(points)
        return IPAParameters(first, second, points)

    def transform(self, image: Tensor, labels: Tensor, params: IPAParameters) -> Tensor:
        """Make both styles and blend them."""
        gin, blend = GIN(), blend_field(params.points, image)
        return blend * gin.transform(image, labels, params.first) + (1 - blend) * gin.transform(
            image, labels, params.second
        )


def per_sample_norm(points: Tensor) -> Tensor:
    """L2 norm of each sample of (B, ...), with axes of size 1 appended."""
    return points.flatten(1).norm(dim=1).clamp(min=1e-20).view(-1, *[1] * (points.ndim - 1))


def blend_field(points: Tensor, like: Tensor) -> Tensor:
    """b of :class:`IPA`: (B, 1, *spatial) in [0, 1] from control points (B, 1, *grid) of unit norm."""
    return unit_range(interpolate(points, like).exp())
