r"""Templates from implicit formulas: a shape is where a function of the position is negative.

The idea of pre-training on such shapes is that of FDIF (arXiv 2603.23199), whose shapes are signed distances of
primitives. The formulas here are our own: seven implicit ones and an iterated one. A smooth wave bends the space of
every shape, and every second shape is nested: the half where the values are lowest is a template of its own.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.synthesis.options import Range
from nnunet_invariance.synthesis.randomness import element_generator, uniform, without_autocast

SHAPES_OF_A_FORMULA = 6
ITERATIONS = 8
JULIA_SCALE = 2.1  # the sets are within |q| < 1.7
ESCAPED = 2.0  # a point whose orbit exceeds it never returns
Parameters = Mapping[str, Tensor]


def superquadric(x: Tensor, p: Parameters) -> Tensor:
    r"""A box with round edges: :math:`(|y/b|^p + |x/a|^p)^{q/p} + |z/c|^q - 1`; an ellipsoid if p = q = 2."""
    z, y, x_ = ((x[:, axis] / p[name]).abs() for axis, name in enumerate(("c", "b", "a")))
    return (y ** p["p"] + x_ ** p["p"]) ** (p["q"] / p["p"]) + z ** p["q"] - 1


def star_prism(x: Tensor, p: Parameters) -> Tensor:
    r"""A prism with ``arms`` ridges, twisted about z and narrower at one end: :math:`\rho - r (1 + d \cos k\phi)`."""
    z, y, x_ = x.unbind(1)
    angle = torch.atan2(y, x_) + p["twist"] * z
    radius = p["radius"] * (1 - p["taper"] * z) * (1 + p["depth"] * (p["arms"].round() * angle).cos())
    return torch.maximum(torch.hypot(y, x_) - radius, z.abs() - p["height"])


def ring(x: Tensor, p: Parameters) -> Tensor:
    r"""A torus whose thickness has ``arms`` maxima: :math:`|(\rho - R, z)| - t (1 + d \cos k\phi)`."""
    z, y, x_ = x.unbind(1)
    thickness = p["thickness"] * (1 + p["depth"] * (p["arms"].round() * torch.atan2(y, x_)).cos())
    return torch.hypot(torch.hypot(y, x_) - p["radius"], z) - thickness


def revolution(x: Tensor, p: Parameters) -> Tensor:
    r"""A solid of revolution about z: :math:`\rho - r (1 + d \cos(f z + \varphi))`, :math:`|z| < h`."""
    z, y, x_ = x.unbind(1)
    radius = p["radius"] * (1 + p["depth"] * (p["frequency"] * z + p["phase"]).cos())
    return torch.maximum(torch.hypot(y, x_) - radius, z.abs() - p["height"])


def harmonic(x: Tensor, p: Parameters) -> Tensor:
    r"""A ball whose radius depends on the direction u: :math:`|x| - r (1 + d \cos(k u_z) \cos(l u_y + m u_x))`."""
    length = x.square().sum(1).sqrt()
    z, y, x_ = (x / length.clamp(min=1e-6)[:, None]).unbind(1)
    wave = (p["k"] * z).cos() * (p["l"] * y + p["m"] * x_).cos()
    return length - p["radius"] * (1 + p["depth"] * wave)


def merged(x: Tensor, p: Parameters) -> Tensor:
    r"""Three balls on a bent line that grow together: :math:`1 - \sum_i \exp(2 - 2 |x - x_i|^2 / r^2)`."""
    total = torch.zeros_like(x[:, 0])
    for at in (-1.0, 0.0, 1.0):
        centre = torch.stack((at * p["length"], at * p["slope"], (at * at - 0.5) * p["bend"]), 1)
        total = total + (2 - 2 * (x - centre).square().sum(1) / p["radius"] ** 2).exp()
    return 1 - total


def gyroid(x: Tensor, p: Parameters) -> Tensor:
    r"""The folded sheet :math:`|\sum_i \sin f x_i \cos f x_{i+1}| < t` inside a ball."""
    waves = x * p["frequency"][:, None]
    sheet = (waves.sin() * waves.roll(1, 1).cos()).sum(1).abs() - p["thickness"]
    return torch.maximum(sheet, x.square().sum(1).sqrt() - p["radius"])


def julia(x: Tensor, p: Parameters) -> Tensor:
    r"""A filled Julia set of quaternions, :math:`q \to q^2 + c` (:data:`ITERATIONS` times).

    With :math:`|\lambda| < 1`, :math:`c = \lambda / 2 - \lambda^2 / 4` or :math:`c = \lambda / 4 - 1` is in one of the
    two largest parts of the Mandelbrot set, so that the shape is connected and contains 0: a wrinkled ball or a string
    of beads. The imaginary part of c points along (cos t, sin t, 0).
    """
    real, first, second = (x * JULIA_SCALE).unbind(1)
    modulus, angle, turn = p["modulus"], p["angle"], p["turn"]
    ball = p["beads"] < 0.5
    c_real = modulus * angle.cos() / 2 - modulus**2 * (2 * angle).cos() / 4
    c_real = torch.where(ball, c_real, modulus * angle.cos() / 4 - 1)
    c_imaginary = modulus * angle.sin() / 2 - modulus**2 * (2 * angle).sin() / 4
    c_imaginary = torch.where(ball, c_imaginary, modulus * angle.sin() / 4)
    for _ in range(ITERATIONS):
        square = real.square() - first.square() - second.square()
        first = (2 * real * first + c_imaginary * turn.cos()).clamp(-8, 8)
        second = (2 * real * second + c_imaginary * turn.sin()).clamp(-8, 8)
        real = (square + c_real).clamp(-8, 8)
    return (real.square() + first.square() + second.square()).sqrt() - ESCAPED


class Formula(NamedTuple):
    """An implicit function of positions (n, 3, z, y, x) in [-1, 1], and the ranges of its parameters (n, 1, 1, 1)."""

    function: Callable[[Tensor, Parameters], Tensor]
    ranges: Mapping[str, Range]


TURN: Range = (0.0, 2 * math.pi)
FORMULAS = {
    "superquadric": Formula(
        superquadric, {"a": (0.3, 0.8), "b": (0.3, 0.8), "c": (0.3, 0.8), "p": (0.8, 6.0), "q": (0.8, 6.0)}
    ),
    "star prism": Formula(
        star_prism,
        {"radius": (0.25, 0.5), "depth": (0.1, 0.4), "arms": (2.5, 7.5), "height": (0.3, 0.8), "twist": (-3.0, 3.0),
         "taper": (0.0, 0.4)},
    ),
    "ring": Formula(
        ring, {"radius": (0.4, 0.55), "thickness": (0.1, 0.22), "depth": (0.0, 0.4), "arms": (1.5, 6.5)}
    ),
    "revolution": Formula(
        revolution,
        {"radius": (0.25, 0.5), "depth": (0.2, 0.6), "frequency": (2.0, 8.0), "phase": TURN, "height": (0.4, 0.8)},
    ),
    "harmonic": Formula(
        harmonic, {"radius": (0.45, 0.6), "depth": (0.15, 0.35), "k": (1.0, 5.0), "l": (1.0, 5.0), "m": (1.0, 5.0)}
    ),
    "merged": Formula(
        merged, {"radius": (0.2, 0.32), "length": (0.2, 0.45), "slope": (-0.3, 0.3), "bend": (-0.4, 0.4)}
    ),
    "gyroid": Formula(gyroid, {"frequency": (3.0, 7.0), "thickness": (0.3, 0.7), "radius": (0.5, 0.8)}),
    "julia": Formula(julia, {"modulus": (0.6, 0.98), "angle": TURN, "turn": TURN, "beads": (0.0, 1.0)}),
}  # fmt: skip
#: Amplitude and frequency of the wave that bends the space of a shape.
WARP: tuple[Range, Range] = ((0.0, 0.06), (1.0, 5.0))


def sample_parameters(formula: Formula, generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform parameters of one shape, 0-d each, and ``warp`` (3, 3): amplitude, frequency and phase of each axis."""
    warp = torch.stack([uniform(bounds, generator, 3) for bounds in (*WARP, TURN)])
    return {name: uniform(bounds, generator) for name, bounds in formula.ranges.items()} | {"warp": warp}


def evaluate(formula: Formula, shapes: list[dict[str, Tensor]], side: int, device: torch.device) -> Tensor:
    """Values (n, side, side, side) of one formula for all shapes at once; negative inside.

    >>> shape = {"a": torch.tensor(0.5), "b": torch.tensor(0.5), "c": torch.tensor(0.5), "warp": torch.zeros(3, 3)}
    >>> shape |= {"p": torch.tensor(2.0), "q": torch.tensor(2.0)}
    >>> ball = evaluate(FORMULAS["superquadric"], [shape], 32, torch.device("cpu"))[0] < 0
    >>> ball[16, 16, 16].item(), ball[0, 0, 0].item()
    (True, False)

    Args:
        shapes: parameters of each shape (:func:`sample_parameters`).
    """
    axis = torch.linspace(-1, 1, side, device=device)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    amplitude, frequency, phase = copy_to(device, torch.stack([p["warp"] for p in shapes])).unbind(1)
    column = (..., None, None, None)
    wave = (frequency[column] * grid.roll(1, 0) + phase[column]).sin()
    bent = grid + amplitude[column] * wave
    names = formula.ranges
    stacked = copy_to(device, torch.stack([torch.stack([p[name] for name in names]) for p in shapes]))
    return formula.function(bent, {name: stacked[:, k, None, None, None] for k, name in enumerate(names)})


@without_autocast
def formula_masks(side: int, seed: int = 0, device: torch.device | str = "cpu") -> list[np.ndarray]:
    """Masks (side, side, side) of shapes of all formulas, made on the device; they depend on side and seed only.

    A nested shape gives two masks: its shell and its core.
    """
    masks: list[Tensor] = []
    for number, formula in enumerate(FORMULAS.values()):
        first = number * SHAPES_OF_A_FORMULA
        shapes = [
            sample_parameters(formula, element_generator(seed, first + index)) for index in range(SHAPES_OF_A_FORMULA)
        ]
        values = evaluate(formula, shapes, side, torch.device(device))
        inside = values < 0
        middle = values.masked_fill(~inside, torch.nan).flatten(1).nanmedian(1).values[:, None, None, None]
        core = values < middle
        masks += [*(inside & ~core)[::2], *core[::2], *inside[1::2]]
    return [mask.cpu().numpy() for mask in masks if mask.any()]
