"""Random appearance of a label map: one normal distribution per label, times a smooth texture (arXiv 2411.02372)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.synthesis.randomness import bernoulli, noise_grids, noise_seed, uniform, white_noise
from nnunet_invariance.synthesis.separable import smooth_noise

LABELS = 256  # labels of a map are 0 to 255


@dataclass(frozen=True)
class Appearance:
    """Parameters of one appearance; ``means`` and ``stds`` (256,) are those of labels 0 to 255."""

    means: Tensor
    stds: Tensor
    seed: int
    empty_background: bool
    texture: list[Tensor]


def sample_appearance(options: SynthesisOptions, generator: torch.Generator) -> Appearance:
    """Sample mean, standard deviation, noise and texture of one appearance."""
    return Appearance(
        means=uniform(options.mean, generator, LABELS),
        stds=uniform(options.std, generator, LABELS),
        seed=noise_seed(generator),
        empty_background=bernoulli(options.empty_background, generator),
        texture=noise_grids(options.size, options.texture_scales, options.texture, generator),
    )


def apply_appearance(labels: Tensor, params: Sequence[Appearance], texture_weight: float) -> Tensor:
    """v = mean_l + std_l N(0, 1), clipped at 0, scaled to [0, 1], times (1 + ``texture_weight`` P).

    ``labels`` (B, 1, z, y, x), integers in 0..255, with one set of parameters per element. Returns
    float32 of that shape.
    """
    means = torch.stack([one.means for one in params])
    stds = torch.stack([one.stds for one in params])
    means, stds = copy_to(labels.device, torch.stack((means, stds)))
    empty = copy_to(labels.device, [one.empty_background for one in params])[:, None]
    index = labels.reshape(len(labels), -1).long()
    background = empty & (torch.arange(LABELS, device=labels.device) == index.amin(1, keepdim=True))
    means, stds = means.masked_fill(background, 0), stds.masked_fill(background, 0)
    x = white_noise([one.seed for one in params], index.shape[1:], labels.device)
    x.mul_(stds.gather(1, index)).add_(means.gather(1, index)).clamp_(min=0)
    x = rescale(x.reshape(labels.shape))
    texture = smooth_noise([one.texture for one in params], labels.shape[2:], labels.device)
    return x.mul_(texture.mul_(texture_weight).add_(1))


def rescale(x: Tensor) -> Tensor:
    """Scale each element to [0, 1]; a constant one becomes 0."""
    axes = tuple(range(1, x.ndim))
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    return (x - low).div_((high - low).clamp(min=1e-7))
