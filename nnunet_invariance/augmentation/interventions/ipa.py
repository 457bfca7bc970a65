"""Interventional pseudo-correlation augmentation: two styles in one image, blended smoothly (arXiv 2111.12525)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import Domain, unit_range, without_gradient
from nnunet_invariance.augmentation.interventions.fields import interpolate, sample_points
from nnunet_invariance.augmentation.interventions.gin import Gin, apply_gin, sample_gin


@dataclass(frozen=True)
class Ipa:
    """Two draws of GIN and the control points (B, 1, *grid) of their blend."""

    first: Gin
    second: Gin
    points: Tensor


def sample_gin_ipa(domain: Domain, generator: torch.Generator) -> Ipa:
    """Draw two random networks and N(0, 1) control points."""
    first, second = sample_gin(domain, generator), sample_gin(domain, generator)
    return Ipa(first, second, sample_points(domain.shape, generator))


@without_gradient
def apply_gin_ipa(image: Tensor, labels: Tensor, draw: Ipa) -> Tensor:
    r""":math:`b\, g_1(x) + (1 - b)\, g_2(x)`, b the exponential of a smooth field, brought to [0, 1] in each sample.

    What lies in one place and what lies in another then do not share a style, which breaks the correlations between
    distant structures that an acquisition makes. Linear interpolation in place of the paper's B-splines.
    """
    blend = unit_range(interpolate(draw.points, image).exp())
    return blend * apply_gin(image, labels, draw.first) + (1 - blend) * apply_gin(image, labels, draw.second)
