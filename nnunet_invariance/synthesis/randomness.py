"""Random numbers of one element; they do not depend on the batch in which it is made."""

import functools
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from nnunet_invariance.synthesis.options import Range

P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function in full precision: under autocast, matrix products become half precision, which FFTs refuse."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return wrapped


def element_generator(seed: int, index: int) -> torch.Generator:
    """A CPU generator that depends on the run's ``seed`` and the element's ``index`` only (both >= 0)."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def uniform(bounds: Range, generator: torch.Generator, *shape: int) -> Tensor:
    """Uniform numbers in ``bounds``; one number (0-d) without ``shape``."""
    low, high = bounds
    return torch.rand(shape, generator=generator) * (high - low) + low


def uniform_int(bounds: tuple[int, int], generator: torch.Generator) -> int:
    """A uniform integer; both ends are included."""
    return int(torch.randint(bounds[0], bounds[1] + 1, (), generator=generator))


def bernoulli(probability: float, generator: torch.Generator) -> bool:
    """True with this probability."""
    return bool(torch.rand((), generator=generator) < probability)


def noise_seed(generator: torch.Generator) -> int:
    """Seed of a field that :func:`white_noise` makes at full size on the device."""
    return int(torch.randint(2**62, (), generator=generator))


def white_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal noise (B, *shape), with a seed per element; CPU and CUDA give different numbers."""
    fields = torch.empty(len(seeds), *shape, device=device)
    for field, seed in zip(fields, seeds, strict=True):
        field.normal_(generator=torch.Generator(device).manual_seed(seed))
    return fields


def noise_grids(
    size: Sequence[int], scales: Sequence[int], std: Range, generator: torch.Generator, channels: int = 1
) -> list[Tensor]:
    """Normal noise on a coarse grid (channels, ceil(n / scale), ...) per scale, each with its own sampled s.d."""
    return [
        torch.randn(channels, *(-(-n // scale) for n in size), generator=generator) * uniform(std, generator)
        for scale in scales
    ]
