"""Saliency-balancing location-scale augmentation: random contrast curves, global and by label (arXiv 2211.14805)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import Domain, uniform, unit_range, without_gradient
from nnunet_invariance.augmentation.interventions.fields import interpolate
from nnunet_invariance.augmentation.interventions.tissues import BINS, region_histogram, region_index

UNTOUCHED = 0.01  # of the range: air
GRID = 3
POOL = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


@dataclass(frozen=True)
class Curves:
    """A contrast curve, scale and shift for each sample, channel and region.

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
class SLAug:
    """One increasing curve for the image, and one for each label: the background's inverted, another's by chance."""

    whole: Curves
    by_label: Curves


def sample_slaug(domain: Domain, generator: torch.Generator) -> SLAug:
    """Draw both sets of curves."""
    batch, channels = domain.shape[:2]
    whole = torch.zeros(batch, channels, 1, dtype=torch.bool)
    by_label = torch.rand(batch, channels, domain.classes, generator=generator) < 0.5
    by_label[:, :, 0] = True
    return SLAug(_sample_curves(whole, generator), _sample_curves(by_label, generator))


def _sample_curves(inverted: Tensor, generator: torch.Generator) -> Curves:
    normal = [torch.randn(inverted.shape, generator=generator) for _ in range(2)]
    scale = (1 + 0.1 * normal[0]).clamp(0.9, 1.1)
    return Curves(uniform((*inverted.shape, 2, 2), 0, 1, generator), inverted, scale, 0.5 * normal[1])


@without_gradient
def apply_global(image: Tensor, labels: Tensor, draw: SLAug) -> Tensor:
    """One curve for the whole image; the result is in [0, 1]. Labels are not read."""
    return _apply_curves(unit_range(image), torch.zeros_like(image, dtype=torch.long), draw.whole)


@without_gradient
def apply_local(image: Tensor, labels: Tensor, draw: SLAug) -> Tensor:
    """Each label by its own curve; the result is in [0, 1]."""
    return _apply_curves(unit_range(image), labels.expand_as(image), draw.by_label)


def _apply_curves(unit: Tensor, regions: Tensor, curves: Curves) -> Tensor:
    """Curve, scale and shift of each region; the shift leaves the 20th and 80th percentile in [0, 1]."""
    count = curves.scale.shape[-1]
    index = region_index(regions, count)
    tables = curve_tables(curves.points, curves.inverted).to(unit.device).view(-1, BINS)
    place = unit * (BINS - 1)
    below = place.long().clamp(max=BINS - 2)
    flat = index * BINS + below
    styled = torch.lerp(tables.flatten()[flat], tables.flatten()[flat + 1], place - below)

    share = region_histogram(styled, regions, count).cumsum(-1)
    total = share[..., -1:]
    low, high = ((share < q * total).sum(-1) / (BINS - 1) for q in (0.2, 0.8))
    scale, shift = curves.scale.to(unit.device), curves.shift.to(unit.device)
    shift = torch.minimum(torch.maximum(shift, -low), 1 - high)
    styled = (styled * scale.flatten()[index] + shift.flatten()[index]).clamp(0, 1)
    return torch.where(unit <= UNTOUCHED, unit, styled)


def curve_tables(points: Tensor, inverted: Tensor) -> Tensor:
    """Values of the curves at 256 intensities from 0 to 1: (..., 2, 2) and (...) to (..., 256).

    A cubic Bezier curve through (0, 0) and (1, 1). Both coordinates sorted make an increasing map; where ``inverted``,
    only x is sorted and y is run through from its end, as Models Genesis does (arXiv 1908.06912).
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


def balance(whole: Tensor, by_label: Tensor, gradient: Tensor) -> Tensor:
    r"""Saliency-balancing fusion :math:`s \cdot` global :math:`+ (1 - s) \cdot` local.

    s is the gradient's magnitude on a grid of 3 cells per axis, interpolated linearly and brought to [0, 1] in each
    sample: where the network leans on the global view, that view stays.

    Args:
        whole, by_label: (B, C, *spatial), what :func:`apply_global` and :func:`apply_local` make.
        gradient: (B, C, *spatial), of the segmentation loss by the global view.
    """
    magnitude = gradient.detach().float().abs().mean(1, keepdim=True)
    cells = POOL[gradient.ndim - 2](magnitude, GRID)
    # unit first: a loss spreads its gradient over so many voxels that it is tiny
    cells = cells / cells.flatten(1).amax(1).clamp(min=torch.finfo(cells.dtype).tiny).view(-1, *[1] * (cells.ndim - 1))
    saliency = unit_range(interpolate(cells, gradient))
    return saliency * whole + (1 - saliency) * by_label
