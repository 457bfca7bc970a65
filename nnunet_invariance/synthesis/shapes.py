"""Procedural templates, used without label maps: deformed spheres, tubes, sheets and nested organs."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from nnunet_invariance.synthesis.randomness import element_generator, noise_grids, uniform, without_autocast
from nnunet_invariance.synthesis.separable import smooth_noise

Kind = Literal["sphere", "tube", "sheet", "organ"]
SHAPES = 48  # number of shapes in a bank; the four kinds alternate


@dataclass(frozen=True)
class Shape:
    """One shape in the cube [-1, 1]^3; lengths are in units of half its side."""

    kind: Kind
    radii: Tensor  # (3,) half-axes; for a sheet and a tube, the extent
    thickness: float
    waves: Tensor  # (2, 3): amplitude, frequency and phase of the two curves that bend a tube or a sheet
    grids: list[Tensor]  # displacement


def sample_shape(kind: Kind, side: int, generator: torch.Generator) -> Shape:
    """Sample half-axes, thickness, bends and a smooth displacement."""
    waves = torch.stack([uniform(b, generator, 2) for b in ((0.1, 0.45), (1.0, 4.0), (0.0, 2 * np.pi))], 1)
    return Shape(
        kind=kind,
        radii=uniform((0.4, 0.85), generator, 3),
        thickness=float(uniform((0.06, 0.2), generator)),
        waves=waves,
        grids=noise_grids((side,) * 3, (side // 8, side // 4), (0.03, 0.12), generator, channels=3),
    )


def rasterize_shape(shape: Shape, side: int) -> list[Tensor]:
    """Masks (side, side, side) of a shape: one, or three for a nested organ (core, middle, shell)."""
    axis = torch.linspace(-1, 1, side)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    grid = grid + smooth_noise([shape.grids], (side,) * 3, axis.device)[0]
    z, y, x = grid
    bend, other = (a * (f * z + p).sin() for a, f, p in shape.waves)
    if shape.kind == "tube":
        return [((y - bend).square() + (x - other).square() < shape.thickness**2) & (z.abs() < shape.radii[0])]
    if shape.kind == "sheet":
        (a, f, p), _ = shape.waves
        surface = x - a * (f * y + p).sin() - other
        return [(surface.abs() < shape.thickness / 2) & ((z / shape.radii[0]) ** 2 + (y / shape.radii[1]) ** 2 < 1)]
    radius = (grid / shape.radii[:, None, None, None]).square().sum(0).sqrt()
    if shape.kind == "sphere":
        return [radius < 1]
    return [radius < 0.45, (radius >= 0.45) & (radius < 0.75), (radius >= 0.75) & (radius < 1)]


@without_autocast
def procedural_masks(side: int, seed: int = 0) -> list[np.ndarray]:
    """Masks (side, side, side) of :data:`SHAPES` shapes; they depend on side and seed only."""
    kinds = get_args(Kind)
    masks: list[np.ndarray] = []
    for index in range(SHAPES):
        shape = sample_shape(kinds[index % len(kinds)], side, element_generator(seed, index))
        masks += [mask.numpy() for mask in rasterize_shape(shape, side) if mask.any()]
    return masks
