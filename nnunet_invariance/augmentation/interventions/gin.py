"""Global intensity non-linear augmentation: a shallow random network as style (arXiv 2111.12525)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import Domain, choose, per_sample, uniform, without_gradient

LAYERS = 4
HIDDEN = 2
KERNELS = (1, 3)
CONV = {2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Gin:
    """Random layers and the share of their output.

    Attributes:
        weights: of each layer (B * C_out, C_in, *kernel).
        shifts: of each layer (B * C_out,).
        alpha: (B,), in [0, 1).
    """

    weights: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]
    alpha: Tensor


def sample_gin(domain: Domain, generator: torch.Generator) -> Gin:
    """Draw N(0, 1) weights and shifts for each sample, one kernel size of 1 or 3 a layer for all, and alpha."""
    batch, channels = domain.shape[:2]
    widths = [channels, *[HIDDEN] * (LAYERS - 1), channels]
    weights, shifts = [], []
    for inputs, outputs in pairwise(widths):
        kernel = domain.kernel(choose(KERNELS, generator))
        weights.append(torch.randn(batch * outputs, inputs, *kernel, generator=generator))
        shifts.append(torch.randn(batch * outputs, generator=generator))
    return Gin(tuple(weights), tuple(shifts), uniform((batch,), 0, 1, generator))


@without_gradient
def apply_gin(image: Tensor, labels: Tensor, draw: Gin) -> Tensor:
    r"""Blend with the random network g and keep each sample's Frobenius norm; labels are not read.

    .. math:: m = \alpha\, g(x) + (1 - \alpha)\, x, \quad x' = m \, \|x\| / (\|m\| + 10^{-5})
    """
    x = image.reshape(1, -1, *image.shape[2:])
    for layer, (weight, shift) in enumerate(zip(draw.weights, draw.shifts, strict=True)):
        x = convolve(x, weight, len(image), shift)
        if layer + 1 < len(draw.weights):
            x = F.leaky_relu(x, 0.01)
    alpha = per_sample(draw.alpha, image)
    mixed = alpha * x.view_as(image) + (1 - alpha) * image
    norms = [per_sample(y.flatten(1).norm(dim=1), image) for y in (image, mixed)]
    return mixed * norms[0] / (norms[1] + 1e-5)


def convolve(x: Tensor, weight: Tensor, groups: int, shift: Tensor | None = None) -> Tensor:
    """A convolution with zero padding that keeps the size: (1, groups * C_in, *spatial), odd kernels."""
    padding = [size // 2 for size in weight.shape[2:]]
    bias = None if shift is None else shift.to(x.device)
    return CONV[x.ndim - 2](x, weight.to(x.device), bias, padding=padding, groups=groups)
