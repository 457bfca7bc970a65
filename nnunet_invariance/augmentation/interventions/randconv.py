"""Random convolution: it changes the local texture and keeps the shapes (arXiv 2007.13003)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import Domain, Intervention, choose, per_sample, uniform
from nnunet_invariance.augmentation.interventions.gin import convolve

KERNELS = (1, 3, 5, 7)


@dataclass(frozen=True)
class RandConvParameters:
    """Weights (B * C, C, *kernel), and the weight alpha (B,) of the convolved image."""

    weight: Tensor
    alpha: Tensor


class RandConv(Intervention[RandConvParameters]):
    r"""Blend the image with a random convolution of it (arXiv 2007.13003, the mixing variant).

    .. math:: x' = \alpha\, (w * x) + (1 - \alpha)\, x

    It does not read the labels.

    >>> image = torch.rand(2, 1, 16, 16)
    >>> RandConv()(image, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 16, 16])
    """

    def sample(self, domain: Domain, generator: torch.Generator) -> RandConvParameters:
        """Sample one kernel size for all, weights of s.d. 1 / sqrt(fan-in) per sample, and alpha in [0, 1)."""
        batch, channels = domain.shape[:2]
        kernel = domain.kernel(choose(KERNELS, generator))
        weight = torch.randn(batch * channels, channels, *kernel, generator=generator)
        weight = weight / math.sqrt(channels * math.prod(kernel))
        return RandConvParameters(weight, uniform((batch,), 0, 1, generator))

    def transform(self, image: Tensor, labels: Tensor, params: RandConvParameters) -> Tensor:
        """Convolve each sample with its own weights and blend."""
        convolved = convolve(image.reshape(1, -1, *image.shape[2:]), params.weight, len(image)).view_as(image)
        alpha = per_sample(params.alpha, image)
        return alpha * convolved + (1 - alpha) * image
