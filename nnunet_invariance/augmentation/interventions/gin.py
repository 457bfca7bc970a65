"""Global intensity non-linear augmentation: a shallow random network changes the style (arXiv 2111.12525)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import Domain, Intervention, choose, per_sample, uniform
from nnunet_invariance.common.device_copies import copy_to

LAYERS = 4
HIDDEN = 2
KERNELS = (1, 3)
CONV = {2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class GINParameters:
    """Parameters of :class:`GIN`.

    Attributes:
        weights: of each layer (B * C_out, C_in, *kernel).
        shifts: of each layer (B * C_out,).
        alpha: (B,), the weight of the network's output, in [0, 1).
    """

    weights: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]
    alpha: Tensor


class GIN(Intervention[GINParameters]):
    r"""Blend the image with the output of a random network g and keep each sample's Frobenius norm (arXiv 2111.12525).

    .. math:: m = \alpha\, g(x) + (1 - \alpha)\, x, \quad x' = m \, \|x\| / (\|m\| + 10^{-5})

    g has four convolutions with leaky ReLU between them. It does not read the labels.

    >>> image = torch.rand(2, 1, 16, 16)
    >>> GIN()(image, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 16, 16])
    """

    def sample(self, domain: Domain, generator: torch.Generator) -> GINParameters:
        """Sample N(0, 1) weights and shifts per sample, one kernel size of 1 or 3 per layer for all, and alpha."""
        batch, channels = domain.shape[:2]
        widths = [channels, *[HIDDEN] * (LAYERS - 1), channels]
        weights, shifts = [], []
        for inputs, outputs in pairwise(widths):
            kernel = domain.kernel(choose(KERNELS, generator))
            weights.append(torch.randn(batch * outputs, inputs, *kernel, generator=generator))
            shifts.append(torch.randn(batch * outputs, generator=generator))
        return GINParameters(tuple(weights), tuple(shifts), uniform((batch,), 0, 1, generator))

    def transform(self, image: Tensor, labels: Tensor, params: GINParameters) -> Tensor:
        """Run the random networks as one grouped network, blend, and restore the norms."""
        x = image.reshape(1, -1, *image.shape[2:])
        for layer, (weight, shift) in enumerate(zip(params.weights, params.shifts, strict=True)):
            x = convolve(x, weight, len(image), shift)
            if layer + 1 < len(params.weights):
                x = F.leaky_relu(x, 0.01)
        alpha = per_sample(params.alpha, image)
        mixed = alpha * x.view_as(image) + (1 - alpha) * image
        norms = [per_sample(y.flatten(1).norm(dim=1), image) for y in (image, mixed)]
        return mixed * norms[0] / (norms[1] + 1e-5)


def convolve(x: Tensor, weight: Tensor, groups: int, shift: Tensor | None = None) -> Tensor:
    """Convolve (1, groups * C_in, *spatial) with odd kernels and zero padding, so that the size stays."""
    padding = [size // 2 for size in weight.shape[2:]]
    bias = None if shift is None else copy_to(x.device, shift)
    return CONV[x.ndim - 2](x, copy_to(x.device, weight), bias, padding=padding, groups=groups)
