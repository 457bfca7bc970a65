"""Random convolution: local texture changes, shape stays (arXiv 2007.13003)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import Domain, choose, per_sample, uniform, without_gradient
from nnunet_invariance.augmentation.interventions.gin import convolve

KERNELS = (1, 3, 5, 7)


@dataclass(frozen=True)
class RandConv:
    """Weights (B * C, C, *kernel) and the share (B,) of the convolved image."""

    weight: Tensor
    alpha: Tensor


def sample_randconv(domain: Domain, generator: torch.Generator) -> RandConv:
    """Draw one kernel size for all, weights of s.d. 1 / sqrt(fan-in) for each sample, and alpha in [0, 1)."""
    batch, channels = domain.shape[:2]
    kernel = domain.kernel(choose(KERNELS, generator))
    weight = torch.randn(batch * channels, channels, *kernel, generator=generator)
    return RandConv(weight / math.sqrt(channels * math.prod(kernel)), uniform((batch,), 0, 1, generator))


@without_gradient
def apply_randconv(image: Tensor, labels: Tensor, draw: RandConv) -> Tensor:
    r""":math:`\alpha\, (w * x) + (1 - \alpha)\, x`, the blended form of the paper; labels are not read."""
    convolved = convolve(image.reshape(1, -1, *image.shape[2:]), draw.weight, len(image)).view_as(image)
    alpha = per_sample(draw.alpha, image)
    return alpha * convolved + (1 - alpha) * image
