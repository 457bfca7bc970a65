"""Random numbers of one element, whatever the batch it is made in."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnunet_invariance.synthesis.options import Range


def element_generator(seed: int, index: int) -> torch.Generator:
    """A CPU generator that depends on the run's ``seed`` and the element's ``index`` alone (both >= 0)."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def uniform(bounds: Range, generator: torch.Generator, *shape: int) -> Tensor:
    """Uniform draws in ``bounds``; one number (0-d) without ``shape``."""
    low, high = bounds
    return torch.rand(shape, generator=generator) * (high - low) + low


def uniform_int(bounds: tuple[int, int], generator: torch.Generator) -> int:
    """A whole number, both ends included."""
    return int(torch.randint(bounds[0], bounds[1] + 1, (), generator=generator))


def bernoulli(probability: float, generator: torch.Generator) -> bool:
    """True with this probability."""
    return bool(torch.rand((), generator=generator) < probability)


def noise_seed(generator: torch.Generator) -> int:
    """Seed of a field that :func:`white_noise` makes where it is needed: on the device, at full size."""
    return int(torch.randint(2**62, (), generator=generator))


def white_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal (B, *shape), a seed an element. The same on one kind of device; CPU and CUDA differ."""
    fields = torch.empty(len(seeds), *shape, device=device)
    for field, seed in zip(fields, seeds, strict=True):
        field.normal_(generator=torch.Generator(device).manual_seed(seed))
    return fields


def noise_grids(
    size: Sequence[int], scales: Sequence[int], std: Range, generator: torch.Generator, channels: int = 1
) -> list[Tensor]:
    """Normal noise on one coarse grid (channels, ceil(n / scale), ...) a scale, each with its own drawn s.d."""
    return [
        torch.randn(channels, *(-(-n // scale) for n in size), generator=generator) * uniform(std, generator)
        for scale in scales
    ]
