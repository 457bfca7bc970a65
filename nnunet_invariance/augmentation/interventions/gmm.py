"""New images out of labels alone: a Gaussian per tissue, a bias field and gamma (SynthSeg, arXiv 2107.09559)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import (
    Domain,
    TissueIntervention,
    per_sample,
    uniform,
    unit_range,
)
from nnunet_invariance.augmentation.interventions.fields import interpolate, sample_control_points
from nnunet_invariance.augmentation.interventions.tissues import find_tissues, region_index, tissue_count
from nnunet_invariance.common.device_copies import copy_to

LARGEST = 300.0
BIAS = 0.5


@dataclass(frozen=True)
class GMMParameters:
    """Parameters of :class:`GMM`.

    Attributes:
        classes: number of labels.
        means, stds: (B, C, tissues), on a scale from 0 to 300.
        noise_seed: seed of the noise, which is made on the device because it is as large as the image.
        bias: (B, 1, *grid), logarithm of the multiplicative field.
        gamma: (B, C), the exponent.
    """

    classes: int
    means: Tensor
    stds: Tensor
    noise_seed: int
    bias: Tensor
    gamma: Tensor


class GMM(TissueIntervention[GMMParameters]):
    r"""Paint each tissue k with noise of a random mean and standard deviation (SynthSeg, arXiv 2107.09559).

    .. math:: x' = u^{\gamma}, \quad u = \mathrm{unit}\big(\mathrm{clip}((\mu_k + \sigma_k \varepsilon)\, e^b)\big)

    The result is in [0, 1]. The intensities of the image only split the labels into tissues; its texture is lost.

    >>> image, labels = torch.rand(2, 1, 16, 16), torch.ones(2, 1, 16, 16, dtype=torch.long)
    >>> GMM()(image, labels, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 16, 16])
    """

    def sample(self, domain: Domain, generator: torch.Generator) -> GMMParameters:
        """Sample means U(25, 225), s.d. U(5, 25), a bias field of s.d. U(0, 0.5), and gamma exp(N(0, 0.5))."""
        batch, channels = domain.shape[:2]
        table = (batch, channels, tissue_count(domain.classes))
        points = sample_control_points(domain.shape, generator)
        strength = uniform((batch,), 0, BIAS, generator)
        return GMMParameters(
            classes=domain.classes,
            means=uniform(table, 25, 225, generator),
            stds=uniform(table, 5, 25, generator),
            noise_seed=int(torch.randint(2**31, (), generator=generator)),
            bias=points * per_sample(strength, points),
            gamma=(0.5 * torch.randn(batch, channels, generator=generator)).exp(),
        )

    def transform(self, image: Tensor, labels: Tensor, params: GMMParameters) -> Tensor:
        """Find the tissues and paint them."""
        index = region_index(find_tissues(image, labels, params.classes), params.means.shape[-1])
        means, stds = (copy_to(image.device, table).flatten()[index] for table in (params.means, params.stds))
        generator = torch.Generator(image.device).manual_seed(params.noise_seed)
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        painted = ((means + stds * noise) * interpolate(params.bias, image).exp()).clamp(0, LARGEST)
        return unit_range(painted) ** per_sample(params.gamma, image)
