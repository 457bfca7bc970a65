"""Corruption of an appearance by the acquisition: the ten-step chain of arXiv 2411.02372.

Every step takes x (B, C, *spatial) with two or three spatial axes, and one value per element. The channels of an
element share all values but the spike.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.synthesis.appearance import rescale
from nnunet_invariance.synthesis.options import Range, SynthesisOptions
from nnunet_invariance.synthesis.randomness import bernoulli, uniform
from nnunet_invariance.synthesis.separable import along_axes, gaussian_matrix, linear_matrix, nearest_matrix


@dataclass(frozen=True)
class Corruption:
    """Parameters of one element; a step that is not applied is ``None``. D: spatial axes, C: channels."""

    bias: Tensor | None  # one coefficient per polynomial
    spike: Tensor | None  # (C, D + 1): position in the spectrum as a fraction of each axis, and strength
    gamma: float | None
    smoothing: Tensor | None  # (D,) standard deviations, voxels
    ringing: float | None
    sharpening: Tensor | None  # (2 D + 1,): first and second standard deviations, and weight
    zoom: float | None


def sample_corruption(options: SynthesisOptions, generator: torch.Generator) -> Corruption:
    """Sample the parameters of all steps of one element."""
    axes, channels = (2, options.size[0]) if options.official_quirks else (3, 1)

    def maybe(probability: float, sample: Callable[[], Any]) -> Any:
        return sample() if bernoulli(probability, generator) else None

    def number(bounds: Range) -> float:
        return float(uniform(bounds, generator))

    def spike() -> Tensor:
        return torch.cat(
            (uniform((0, 1), generator, channels, axes), uniform(options.spike, generator, channels, 1)), 1
        )

    def sharpening() -> Tensor:
        low = options.sharpening_sigma[0]
        first = uniform(options.sharpening_sigma, generator, axes)
        second = low + uniform((0, 1), generator, axes) * (first - low)
        return torch.cat((first, second, uniform(options.sharpening, generator, 1)))

    terms = len(exponents(options.bias_degree, axes))
    return Corruption(
        bias=maybe(options.bias_probability, lambda: uniform(options.bias, generator, terms)),
        spike=maybe(options.spike_probability, spike),
        gamma=maybe(options.gamma_probability, lambda: number(options.gamma)),
        smoothing=maybe(options.smoothing_probability, lambda: uniform(options.smoothing, generator, axes)),
        ringing=maybe(options.ringing_probability, lambda: number(options.ringing)),
        sharpening=maybe(options.sharpening_probability, sharpening),
        zoom=maybe(options.low_resolution_probability, lambda: number(options.zoom)),
    )


def apply_corruption(x: Tensor, params: Sequence[Corruption], options: SynthesisOptions) -> Tensor:
    """Apply the ten steps in their order to (B, 1, z, y, x); the result is in [0, 1]."""
    shape = x.shape
    if options.official_quirks:
        x = x[:, 0]  # the first axis becomes the channels: planes are corrupted independently
    x = rescale(x)
    for name, step in _steps(options):
        x = apply_to_sampled(x, [getattr(one, name) for one in params], step)
    return rescale(x.clamp(min=0)).reshape(shape)


def _steps(options: SynthesisOptions) -> list[tuple[str, Callable[[Tensor, Any], Tensor]]]:
    return [
        ("bias", partial(bias_field, degree=options.bias_degree)),
        ("spike", spike),
        ("gamma", gamma),
        ("smoothing", smoothing),
        ("ringing", ringing),
        ("sharpening", sharpening),
        ("zoom", partial(low_resolution, exact=not options.official_quirks)),
    ]


def apply_to_sampled(x: Tensor, values: Sequence[Any], step: Callable[[Tensor, Any], Tensor]) -> Tensor:
    """Apply ``step(x, values)`` to the elements whose value is not ``None``; the others stay."""
    rows = [row for row, value in enumerate(values) if value is not None]
    if len(rows) == len(values):
        return step(x, values)
    if not rows:
        return x
    index = copy_to(x.device, rows)
    return x.index_copy(0, index, step(x.index_select(0, index), [values[row] for row in rows]))


def exponents(degree: int, axes: int) -> list[tuple[int, ...]]:
    """Degrees along each axis of all polynomials with a total degree of at most ``degree``."""
    return [powers for powers in itertools.product(range(degree + 1), repeat=axes) if sum(powers) <= degree]


def bias_field(
    x: Tensor, coefficients: Sequence[Tensor], degree: int = 3, basis: Callable = np.polynomial.legendre.legvander
) -> Tensor:
    """x exp(sum_p c_p L_p1(z) L_p2(y) L_p3(x)) with the ``basis`` L on [-1, 1]: ``legvander`` or ``polyvander``."""
    spatial = x.shape[2:]
    powers = torch.tensor(exponents(degree, len(spatial)))
    table = torch.zeros(len(x), *[degree + 1] * len(spatial))
    index = (slice(None), *powers.T)
    table[index] = torch.stack(list(coefficients)).float()
    bases = [basis(np.linspace(-1, 1, n), degree) for n in spatial]
    field = along_axes(copy_to(x.device, table[:, None], x.dtype), [torch.from_numpy(basis)[None] for basis in bases])
    return x * field.exp_()


def spike(x: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Set the magnitude of one Fourier coefficient per channel to exp(2.5 s mean log|F|) and keep its phase.

    In the image, this adds one plane wave, so that no inverse transform is needed.
    """
    spatial = x.shape[2:]
    axes = tuple(range(2, x.ndim))
    values = copy_to(x.device, torch.stack(list(params)), x.dtype)
    size = copy_to(x.device, spatial)
    position = (values[..., :-1] * size).long().clamp(max=size - 1)
    spectrum = torch.fft.rfftn(x, dim=axes)
    weight = torch.full((spectrum.shape[-1],), 2.0, device=x.device)  # a half spectrum also represents its mirror image
    weight[0] = 1
    if spatial[-1] % 2 == 0:
        weight[-1] = 1
    mean_log = ((spectrum.abs() + 1e-10).log() * weight).sum(axes) / math.prod(spatial)
    mirrored = position[..., -1] >= spectrum.shape[-1]
    where = torch.where(mirrored[..., None], (size - position) % size, position)
    rows, channels = torch.meshgrid(*(torch.arange(n, device=x.device) for n in x.shape[:2]), indexing="ij")
    index = (rows, channels, *where.unbind(-1))
    value = spectrum[index]
    value = torch.where(mirrored, value.conj(), value)
    amplitude = ((2.5 * values[..., -1] * mean_log).exp() - value.abs()) / math.prod(spatial)
    one = [1] * len(spatial)
    phase = value.angle().reshape(*x.shape[:2], *one)
    for axis, n in enumerate(spatial):
        angles = (position[..., axis, None] * torch.arange(n, device=x.device)) % n * (2 * math.pi / n)
        phase = phase + angles.reshape(*x.shape[:2], *one[:axis], n, *one[axis + 1 :])
    return x + amplitude.reshape(*x.shape[:2], *one) * phase.cos_()


def gamma(x: Tensor, exponent: Sequence[float]) -> Tensor:
    """((x - min) / range)^gamma range + min."""
    axes = tuple(range(1, x.ndim))
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    span = (high - low).clamp(min=1e-7)
    power = copy_to(x.device, list(exponent)).reshape(-1, *[1] * (x.ndim - 1))
    return (x - low).div_(span).pow_(power).mul_(span).add_(low)


def smoothing(x: Tensor, sigmas: Sequence[Tensor]) -> Tensor:
    """Gaussian blur; (D,) standard deviations in voxels."""
    return along_axes(
        x,
        [
            torch.stack([gaussian_matrix(n, float(sigma[axis])) for sigma in sigmas])
            for axis, n in enumerate(x.shape[2:])
        ],
    )


def ringing(x: Tensor, alphas: Sequence[float]) -> Tensor:
    """Gibbs ringing: frequencies beyond (1 - alpha) n / sqrt(2) are removed, n: the longest side."""
    spatial = x.shape[2:]
    axes = tuple(range(2, x.ndim))
    squared = torch.zeros((), device=x.device)
    for axis, n in enumerate(spatial):
        last = axis == len(spatial) - 1
        frequency = (torch.fft.rfftfreq if last else torch.fft.fftfreq)(n, 1 / n, device=x.device)
        squared = squared + frequency.square().reshape(-1, *[1] * (len(spatial) - 1 - axis))
    radius = (1 - copy_to(x.device, list(alphas))) * max(spatial) / math.sqrt(2)
    # Slightly more than the radius, so that rounding does not decide about frequencies on it.
    kept = squared <= (radius * (1 + 1e-5)).square().reshape(-1, *[1] * (x.ndim - 1))
    return torch.fft.irfftn(torch.fft.rfftn(x, dim=axes).mul_(kept), s=spatial, dim=axes)


def sharpening(x: Tensor, params: Sequence[Tensor]) -> Tensor:
    """b + w (b - G_2 b) with b = G_1 x; parameters (2 D + 1,): sigma_1 and sigma_2 of the axes, and w."""
    axes = x.ndim - 2
    blurred = smoothing(x, [one[:axes] for one in params])
    twice = smoothing(blurred, [one[axes:-1] for one in params])
    weight = copy_to(x.device, torch.stack([one[-1] for one in params]), x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return blurred + weight * (blurred - twice)


def low_resolution(x: Tensor, zooms: Sequence[float], exact: bool = True) -> Tensor:
    """Sample the nearest voxels of a grid coarser by ``zoom`` and interpolate back linearly."""

    def there_and_back(n: int, zoom: float) -> Tensor:
        coarse = max(1, round(n * zoom))
        return linear_matrix(coarse, n) @ nearest_matrix(n, coarse, exact)

    return along_axes(x, [torch.stack([there_and_back(n, zoom) for zoom in zooms]) for n in x.shape[2:]])
