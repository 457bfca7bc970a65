"""One of three interventions per sample, then a bias field and gamma."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import (
    Domain,
    Intervention,
    TissueIntervention,
    per_sample,
    uniform,
    unit_range,
)
from nnunet_invariance.augmentation.interventions.clusters import Clusters
from nnunet_invariance.augmentation.interventions.fields import interpolate, sample_control_points
from nnunet_invariance.augmentation.interventions.ipa import IPA
from nnunet_invariance.augmentation.interventions.slaug import SLAug
from nnunet_invariance.common.device_copies import copy_to

#: Probabilities of :class:`IPA`, :class:`Clusters` and :class:`SLAug`.
SHARES = (0.5, 0.3, 0.2)
BIAS = 0.3


@dataclass(frozen=True)
class Part:
    """Parameters of one intervention for the samples ``rows`` (1-D int64) of the batch."""

    rows: Tensor
    params: Any


@dataclass(frozen=True)
class MixedParameters:
    """Parameters of :class:`Mixed`.

    Attributes:
        parts: one per intervention, in the order of :data:`SHARES`; None where no sample has it.
        bias: (B, 1, *grid), logarithm of the multiplicative field.
        gamma: (B, C), the exponent.
    """

    parts: tuple[Part | None, ...]
    bias: Tensor
    gamma: Tensor


class Mixed(TissueIntervention[MixedParameters]):
    r"""Apply :class:`IPA`, :class:`Clusters` or :class:`SLAug`, chosen per sample, then a bias field b and gamma.

    .. math:: x' = (u\, e^b)^{\gamma}

    u is the result of the chosen intervention, scaled to [0, 1] per sample and channel.

    >>> image, labels = torch.rand(2, 1, 16, 16), torch.ones(2, 1, 16, 16, dtype=torch.long)
    >>> Mixed()(image, labels, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 16, 16])
    """

    @property
    def interventions(self) -> tuple[Intervention[Any], ...]:
        """The interventions, in the order of :data:`SHARES`."""
        return IPA(), Clusters(self.tissues), SLAug(self.tissues)

    def sample(self, domain: Domain, generator: torch.Generator) -> MixedParameters:
        """Choose an intervention per sample by its share; sample its parameters, a bias of s.d. U(0, 0.3) and gamma."""
        batch = domain.shape[0]
        chosen = torch.multinomial(torch.tensor(SHARES), batch, replacement=True, generator=generator)
        points = sample_control_points(domain.shape, generator)
        strength = uniform((batch,), 0, BIAS, generator)
        gamma = (0.3 * torch.randn(*domain.shape[:2], generator=generator)).exp()
        parts: list[Part | None] = []
        for number, intervention in enumerate(self.interventions):
            rows = (chosen == number).nonzero()[:, 0]
            own = domain._replace(shape=(len(rows), *domain.shape[1:]))
            parts.append(Part(rows, intervention.sample(own, generator)) if len(rows) else None)
        return MixedParameters(tuple(parts), points * per_sample(strength, points), gamma)

    def transform(self, image: Tensor, labels: Tensor, params: MixedParameters) -> Tensor:
        """Apply each intervention to its samples, then the bias field and gamma to all."""
        styled = torch.empty_like(image)
        for intervention, part in zip(self.interventions, params.parts, strict=True):
            if part is not None:
                rows = copy_to(image.device, part.rows)
                styled[rows] = intervention.transform(image[rows], labels[rows], part.params)
        field = interpolate(params.bias, image).exp()
        return (unit_range(styled) * field) ** per_sample(params.gamma, image)
