"""Saliency-balancing location-scale augmentation: random contrast curves, global and per label (arXiv 2211.14805)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import Domain, TissueIntervention, uniform, unit_range
from nnunet_invariance.augmentation.interventions.fields import interpolate
from nnunet_invariance.augmentation.interventions.tissues import BINS, region_histogram, region_index, region_range
from nnunet_invariance.common.device_copies import copy_to

UNTOUCHED = 0.01  # of the image's range: air keeps its values
GRID = 3
POOL = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


@dataclass(frozen=True)
class Curves:
    """A contrast curve, a scale and a shift per sample, channel and region.

    Attributes:
        points: (B, C, R, 2, 2), the inner control points 1 and 2 of a cubic Bezier curve, each (x, y) in [0, 1].
        inverted: (B, C, R) bool.
        scale: (B, C, R), in [0.9, 1.1].
        shift: (B, C, R), before it is clipped.
    """

    points: Tensor
    inverted: Tensor
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class SLAugParameters:
    """Parameters of :class:`SLAug`: the curve of the whole image, and the curves of the labels."""

    global_curves: Curves
    local_curves: Curves


class SLAug(TissueIntervention[SLAugParameters]):
    """Contrast curves per label (the local form of arXiv 2211.14805); the result is in [0, 1].

    Each label has a cubic Bezier curve over its own range of intensities, then a scale and a shift. The curve of label
    0 is inverted, that of any other label with probability 1/2. :meth:`apply_global` is the global form, and
    :func:`saliency_fusion` combines both, as the paper does during training.

    >>> image, labels = torch.rand(2, 1, 16, 16), torch.ones(2, 1, 16, 16, dtype=torch.long)
    >>> SLAug()(image, labels, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 16, 16])
    """

    def sample(self, domain: Domain, generator: torch.Generator) -> SLAugParameters:
        """Sample one increasing curve for the image, and a curve per label."""
        batch, channels = domain.shape[:2]
        increasing = torch.zeros(batch, channels, 1, dtype=torch.bool)
        inverted = torch.rand(batch, channels, domain.classes, generator=generator) < 0.5
        inverted[:, :, 0] = True
        return SLAugParameters(_sample_curves(increasing, generator), _sample_curves(inverted, generator))

    def transform(self, image: Tensor, labels: Tensor, params: SLAugParameters) -> Tensor:
        """Apply each label's own curve."""
        return _apply_curves(unit_range(image), labels.expand_as(image), params.local_curves)

    def apply_global(self, image: Tensor, params: SLAugParameters) -> Tensor:
        """Apply one curve to the whole image (B, C, *spatial); returns float32 in [0, 1]."""
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            unit = unit_range(image.float())
            return _apply_curves(unit, torch.zeros_like(unit, dtype=torch.long), params.global_curves)


def _sample_curves(inverted: Tensor, generator: torch.Generator) -> Curves:
    normal = [torch.randn(inverted.shape, generator=generator) for _ in range(2)]
    scale = (1 + 0.1 * normal[0]).clamp(0.9, 1.1)
    return Curves(uniform((*inverted.shape, 2, 2), 0, 1, generator), inverted, scale, 0.5 * normal[1])


def _apply_curves(unit: Tensor, regions: Tensor, curves: Curves) -> Tensor:
    """Apply the curve, the scale and the shift of each region to an image in [0, 1].

    A curve spans the range of its region. The shift is clipped so that the 20th and 80th percentile stay in [0, 1].
    """
    count = curves.scale.shape[-1]
    index = region_index(regions, count)
    tables = copy_to(unit.device, curve_tables(curves.points, curves.inverted)).view(-1, BINS)
    low, high = (bound.flatten()[index] for bound in region_range(unit, regions, count))
    position = (unit - low) / (high - low).clamp(min=1e-6) * (BINS - 1)
    below = position.long().clamp(max=BINS - 2)
    flat = index * BINS + below
    styled = torch.lerp(tables.flatten()[flat], tables.flatten()[flat + 1], position - below)
    styled = low + (high - low) * styled

    share = region_histogram(styled, regions, count).cumsum(-1)
    total = share[..., -1:]
    low, high = ((share < q * total).sum(-1) / (BINS - 1) for q in (0.2, 0.8))
    scale, shift = (copy_to(unit.device, table) for table in (curves.scale, curves.shift))
    shift = torch.minimum(torch.maximum(shift, -low), 1 - high)
    styled = (styled * scale.flatten()[index] + shift.flatten()[index]).clamp(0, 1)
    return torch.where(unit <= UNTOUCHED, unit, styled)


def curve_tables(points: Tensor, inverted: Tensor) -> Tensor:
    """Values of the curves at 256 intensities from 0 to 1: (..., 2, 2) and (...) to (..., 256).

    A cubic Bezier curve through (0, 0) and (1, 1). Sorting both coordinates makes an increasing map. Where
    ``inverted``, only x is sorted and y runs from its end, as in Models Genesis (arXiv 1908.06912).
    """
    t = torch.linspace(0, 1, BINS)
    inner = 3 * points[..., 0, :, None] * t * (1 - t) ** 2 + 3 * points[..., 1, :, None] * t**2 * (1 - t)
    curve = inner + t**3
    x = curve[..., 0, :].sort(-1).values.contiguous()
    y = torch.where(inverted[..., None], curve[..., 1, :].flip(-1), curve[..., 1, :].sort(-1).values)
    at = torch.linspace(0, 1, BINS).expand_as(x).contiguous()
    right = torch.searchsorted(x, at).clamp(1, BINS - 1)
    x0, x1, y0, y1 = (v.gather(-1, i) for v in (x, y) for i in (right - 1, right))
    return torch.lerp(y0, y1, ((at - x0) / (x1 - x0).clamp(min=1e-8)).clamp(0, 1))


def saliency_fusion(global_view: Tensor, local_view: Tensor, gradient: Tensor) -> Tensor:
    r"""Saliency-balancing fusion :math:`s \cdot` global :math:`+ (1 - s) \cdot` local (arXiv 2211.14805).

    s is the magnitude of the gradient, averaged over a grid of 3 cells per axis, interpolated linearly and scaled to
    [0, 1] per sample: where the loss depends strongly on the global view, that view is kept. Any positive factor of
    the gradient, such as the scale of a gradient scaler, cancels. A sample whose gradient is not finite (the scaled
    loss overflowed) becomes the local view.

    Args:
        global_view, local_view: (B, C, *spatial), the results of ``apply_global`` and ``apply`` of :class:`SLAug`.
        gradient: (B, C, *spatial), of the segmentation loss with respect to the global view.
    """
    magnitude = gradient.detach().float().abs().mean(1, keepdim=True)
    ones = [1] * (gradient.ndim - 2)
    finite = magnitude.flatten(1).isfinite().all(1).view(-1, 1, *ones)
    magnitude = torch.where(finite, magnitude, 0)
    cells = POOL[gradient.ndim - 2](magnitude, GRID)
    # Scale to at most 1 first: a loss spreads its gradient over so many voxels that unit_range would see a constant.
    cells = cells / cells.flatten(1).amax(1).clamp(min=torch.finfo(cells.dtype).tiny).view(-1, 1, *ones)
    saliency = unit_range(interpolate(cells, gradient))
    return saliency * global_view + (1 - saliency) * local_view
