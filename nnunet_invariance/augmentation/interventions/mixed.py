"""One of three interventions a batch, then a bias field and gamma."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import (
    Domain,
    Intervention,
    per_sample,
    uniform,
    unit_range,
    without_gradient,
)
from nnunet_invariance.augmentation.interventions.clusters import apply_clusters, sample_clusters
from nnunet_invariance.augmentation.interventions.fields import interpolate, sample_points
from nnunet_invariance.augmentation.interventions.ipa import apply_gin_ipa, sample_gin_ipa
from nnunet_invariance.augmentation.interventions.slaug import apply_local, sample_slaug

#: Interventions and their shares.
PARTS = (
    (Intervention(sample_gin_ipa, apply_gin_ipa), 0.5),
    (Intervention(sample_clusters, apply_clusters), 0.3),
    (Intervention(sample_slaug, apply_local), 0.2),
)
BIAS = 0.3


@dataclass(frozen=True)
class Mixed:
    """What was chosen, its draw, and what comes after it.

    Attributes:
        chosen: index into :data:`PARTS`.
        draw: of that intervention.
        bias: (B, 1, *grid), logarithm of the multiplicative field.
        gamma: (B, C), the exponent.
    """

    chosen: int
    draw: Any
    bias: Tensor
    gamma: Tensor


def sample_mixed(domain: Domain, generator: torch.Generator) -> Mixed:
    """Choose one intervention for the batch, by its share, and draw it, bias (s.d. U(0, 0.3)) and gamma."""
    shares = torch.tensor([share for _, share in PARTS])
    chosen = int(torch.multinomial(shares, 1, generator=generator))
    points = sample_points(domain.shape, generator)
    strength = uniform((domain.shape[0],), 0, BIAS, generator)
    gamma = (0.3 * torch.randn(*domain.shape[:2], generator=generator)).exp()
    draw = PARTS[chosen][0].sample(domain, generator)
    return Mixed(chosen, draw, points * per_sample(strength, points), gamma)


@without_gradient
def apply_mixed(image: Tensor, labels: Tensor, draw: Mixed) -> Tensor:
    r""":math:`(u\, e^b)^{\gamma}`, u the unit range of the chosen intervention's result."""
    unit = unit_range(PARTS[draw.chosen][0].apply(image, labels, draw.draw))
    return (unit * interpolate(draw.bias, image).exp()) ** per_sample(draw.gamma, image)
