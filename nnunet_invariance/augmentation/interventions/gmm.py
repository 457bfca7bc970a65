"""New images out of labels alone: a Gaussian for each tissue, bias field and gamma (SynthSeg, arXiv 2107.09559)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import (
    Domain,
    per_sample,
    uniform,
    unit_range,
    without_gradient,
)
from nnunet_invariance.augmentation.interventions.fields import interpolate, sample_points
from nnunet_invariance.augmentation.interventions.tissues import find_tissues, region_index, tissue_count

LARGEST = 300.0
BIAS = 0.5


@dataclass(frozen=True)
class Gmm:
    """Parameters of one generation.

    Attributes:
        classes: number of labels.
        means, stds: (B, C, tissues), on a scale from 0 to 300.
        noise_seed: the noise is made from it where the image is, because it is as large as the image.
        bias: (B, 1, *grid), logarithm of the multiplicative field.
        gamma: (B, C), the exponent.
    """

    classes: int
    means: Tensor
    stds: Tensor
    noise_seed: int
    bias: Tensor
    gamma: Tensor


def sample_gmm(domain: Domain, generator: torch.Generator) -> Gmm:
    """Draw means U(25, 225), s.d. U(5, 25), bias of s.d. U(0, 0.5), and gamma exp(N(0, 0.5))."""
    batch, channels = domain.shape[:2]
    table = (batch, channels, tissue_count(domain.classes))
    points = sample_points(domain.shape, generator)
    strength = uniform((batch,), 0, BIAS, generator)
    return Gmm(
        classes=domain.classes,
        means=uniform(table, 25, 225, generator),
        stds=uniform(table, 5, 25, generator),
        noise_seed=int(torch.randint(2**31, (), generator=generator)),
        bias=points * per_sample(strength, points),
        gamma=(0.5 * torch.randn(batch, channels, generator=generator)).exp(),
    )


@without_gradient
def apply_gmm(image: Tensor, labels: Tensor, draw: Gmm) -> Tensor:
    r""":math:`x' = u^{\gamma}`, u the unit range of :math:`\mathrm{clip}((\mu_k + \sigma_k \varepsilon)\, e^b)`.

    The intensities of ``image`` only split the labels into tissues k; its texture is lost.
    """
    index = region_index(find_tissues(image, labels, draw.classes), draw.means.shape[-1])
    means, stds = (table.to(image.device).flatten()[index] for table in (draw.means, draw.stds))
    noise = torch.randn(
        image.shape, generator=torch.Generator(image.device).manual_seed(draw.noise_seed), device=image.device
    )
    painted = ((means + stds * noise) * interpolate(draw.bias, image).exp()).clamp(0, LARGEST)
    return unit_range(painted) ** per_sample(draw.gamma, image)
