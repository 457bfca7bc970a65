"""Augmentation of synthetic pairs during training (arXiv 2411.02372): shared geometry, separate intensities."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_invariance.augmentation.device_views import apply_affine
from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.synthesis.corruptions import apply_to_sampled, bias_field, exponents, smoothing
from nnunet_invariance.synthesis.engine import SyntheticPairs
from nnunet_invariance.synthesis.ensembles import rotations
from nnunet_invariance.synthesis.randomness import bernoulli, noise_seed, uniform, white_noise, without_autocast

MOVES = 2  # number of positions of a scan with motion, in addition to the first
UNIT = (1.0, 1.0, 1.0)  # label maps have no spacing: lengths are in voxels


@dataclass(frozen=True)
class Motion:
    """Rigid motion during a scan: ``matrices`` (2, 3, 3), ``shifts`` (2, 3) voxels, ``times`` (2,) in 0..1."""

    matrices: Tensor
    shifts: Tensor
    times: Tensor


@dataclass(frozen=True)
class IntensityChange:
    """Intensity changes of one view in the order of their application; ``None``: not applied."""

    blur: Tensor | None  # (3,) standard deviations, voxels
    noise: tuple[float, int] | None  # standard deviation, seed
    bias: Tensor | None  # coefficients of the monomials
    gamma: float | None
    motion: Motion | None


@dataclass(frozen=True)
class Augmentation:
    """Parameters of one element; ``matrix`` (3, 3) maps an offset from the centre in the output to the input."""

    swapped: bool
    flipped: tuple[int, ...]  # spatial axes
    matrix: Tensor | None
    changes: tuple[IntensityChange, IntensityChange]


@without_autocast
def sample_augmentation(generator: torch.Generator) -> Augmentation:
    """Sample the order of the views, flips, an affine map and the intensity changes of both views."""
    swapped = bernoulli(0.5, generator)
    flips = bernoulli(0.9, generator)
    flipped = tuple(axis for axis in range(3) if bernoulli(0.5, generator) and flips)
    matrix = None
    if bernoulli(0.5, generator):
        matrix = torch.diag(uniform((0.6, 1.4), generator, 3)) @ _rotations(45.0, 1, generator)[0]
    return Augmentation(swapped, flipped, matrix, (_sample_change(generator), _sample_change(generator)))


def _rotations(largest: float, n: int, generator: torch.Generator) -> Tensor:
    return rotations(torch.deg2rad(uniform((-largest, largest), generator, n, 3)))


def _sample_change(generator: torch.Generator) -> IntensityChange:
    def maybe(probability: float, sample: Callable[[], Any]) -> Any:
        return sample() if bernoulli(probability, generator) else None

    def motion() -> Motion:
        step = 1 / (MOVES + 1)
        times = torch.arange(1, MOVES + 1) * step + uniform((-step / 2, step / 2), generator, MOVES)
        return Motion(_rotations(10.0, MOVES, generator), uniform((-10, 10), generator, MOVES, 3), times)

    return IntensityChange(
        blur=maybe(0.33, lambda: uniform((0, 2), generator, 3)),
        noise=maybe(0.33, lambda: (float(uniform((0, 0.25), generator)), noise_seed(generator))),
        bias=maybe(0.5, lambda: uniform((-0.5, 0.5), generator, len(exponents(3, 3)))),
        gamma=maybe(0.5, lambda: math.exp(uniform((-0.4, 0.4), generator))),
        motion=maybe(0.33, motion),
    )


@without_autocast
def apply_augmentation(pair: SyntheticPairs, params: Sequence[Augmentation]) -> SyntheticPairs:
    """Scale by the 99.99th percentile and apply the parameters; values can leave [0, 1] slightly.

    Labels are resampled by nearest neighbour, appearances linearly, with 0 outside the volume.
    """
    swapped = copy_to(pair.labels.device, [one.swapped for one in params]).reshape(-1, 1, 1, 1, 1)
    first, second = (scale_to_percentile(view) for view in pair.views)
    views = torch.where(swapped, second, first), torch.where(swapped, first, second)
    labels, *moved = (
        _shared_geometry(x, params, mode)
        for x, mode in ((pair.labels, "nearest"), (views[0], "bilinear"), (views[1], "bilinear"))
    )
    changed = (_change(view, [one.changes[which] for one in params]) for which, view in enumerate(moved))
    return SyntheticPairs(labels, *changed)


def scale_to_percentile(x: Tensor, percent: float = 99.99) -> Tensor:
    """(x - min) / (percentile - min) of each element, not clipped."""
    flat = x.flatten(1)
    rank = max(1, round(percent / 100 * flat.shape[1]))
    low = flat.amin(1)
    # The smallest of the few larger values: a GPU finds the k-th value of a row with a single block of threads.
    high = flat.topk(flat.shape[1] - rank + 1, 1, sorted=False).values.amin(1)
    one = (-1, *[1] * (x.ndim - 1))
    return (x - low.reshape(one)) / (high - low).clamp(min=1e-7).reshape(one)


def _shared_geometry(x: Tensor, params: Sequence[Augmentation], mode: str) -> Tensor:
    x = torch.stack([y.flip([axis + 1 for axis in one.flipped]) for y, one in zip(x, params, strict=True)])

    def affine(part: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        return apply_affine(part, torch.stack(list(matrices)), UNIT, mode).to(part.dtype)

    return apply_to_sampled(x, [one.matrix for one in params], affine)


def _change(x: Tensor, changes: Sequence[IntensityChange]) -> Tensor:
    steps: dict[str, Callable[[Tensor, Any], Tensor]] = {
        "blur": smoothing,
        "noise": add_noise,
        "bias": partial(bias_field, basis=np.polynomial.polynomial.polyvander),
        "gamma": signed_gamma,
        "motion": motion,
    }
    for name, step in steps.items():
        x = apply_to_sampled(x, [getattr(change, name) for change in changes], step)
    return x


def add_noise(x: Tensor, params: Sequence[tuple[float, int]]) -> Tensor:
    """x + s N(0, 1); each parameter is (s, seed)."""
    std = copy_to(x.device, [s for s, _ in params]).reshape(-1, *[1] * (x.ndim - 1))
    return white_noise([seed for _, seed in params], x.shape[1:], x.device).mul_(std).add_(x)


def signed_gamma(x: Tensor, exponents: Sequence[float]) -> Tensor:
    """sign(x) |x|^gamma."""
    power = copy_to(x.device, list(exponents)).reshape(-1, *[1] * (x.ndim - 1))
    return x.sign() * x.abs() ** power


def motion(x: Tensor, params: Sequence[Motion]) -> Tensor:
    """Take slabs of the spectrum along the last axis from different positions; the central slab from the first."""
    n = x.shape[-1]
    spectra = [torch.fft.fftn(x, dim=(2, 3, 4))]
    for move in range(MOVES):
        rotated = apply_affine(x, torch.stack([one.matrices[move] for one in params]), UNIT)
        shift = copy_to(x.device, torch.stack([one.shifts[move] for one in params]), x.dtype)
        spectra.append(torch.fft.fftn(rotated, dim=(2, 3, 4)) * _shift_phase(x.shape[2:], shift))
    cuts = copy_to(x.device, torch.stack([one.times for one in params]), x.dtype) * n
    order = torch.fft.fftshift(torch.fft.fftfreq(n, 1 / n, device=x.device)) + n // 2
    slab = (order[None, :, None] >= cuts[:, None, :]).sum(-1)  # (B, n): 0, 1, 2 in the order of time
    centre = slab[:, n // 2, None]
    # Exchange the position of the central slab with the first one.
    origin = torch.where(slab == centre, 0, torch.where(slab == 0, centre, slab))
    origin = torch.fft.ifftshift(origin, dim=1)[:, None, None, None]
    mixed = torch.where(origin == 0, spectra[0], torch.where(origin == 1, spectra[1], spectra[2]))
    return torch.fft.ifftn(mixed, dim=(2, 3, 4)).real


def _shift_phase(spatial: Sequence[int], shifts: Tensor) -> Tensor:
    """exp(-2 pi i f.t) (B, 1, *spatial): a shift by t voxels, (B, 3)."""
    phase = torch.zeros((), device=shifts.device)
    for axis, n in enumerate(spatial):
        line = [-1 if a == axis else 1 for a in range(3)]
        frequency = torch.fft.fftfreq(n, device=shifts.device).reshape(1, 1, *line)
        phase = phase - 2 * math.pi * frequency * shifts[:, axis].reshape(-1, 1, 1, 1, 1)
    return torch.polar(torch.ones_like(phase), phase)
