"""Affine and intensity augmentation of batches of 3-D patches on their device.

``sample_*`` samples the parameters and ``apply_*`` applies them, so that a view can be repeated and inverted. There are
no flips, because left and right are anatomy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from nnunetv2.configuration import ANISO_THRESHOLD
from torch import Tensor

from nnunet_invariance.common.device_copies import copy_to


def _uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, device=generator.device) * (high - low) + low


def sample_affine(
    batch: int,
    spacing: Sequence[float],
    generator: torch.Generator,
    rotation: float = math.radians(15),
    scale: tuple[float, float] = (0.9, 1.1),
) -> Tensor:
    """Sample rotations (radians, each axis within +-``rotation``) and isotropic scales.

    Returns (B, 3, 3): the matrix that maps an offset from the patch centre in the output (z, y, x in mm) to the offset
    in the input. With anisotropic ``spacing`` (mm, z y x), only in-plane rotations and scales are sampled.
    """
    spacing_t = torch.tensor(spacing, dtype=torch.float64)
    angles = _uniform((batch, 3), -rotation, rotation, generator)
    scales = _uniform((batch, 1), *scale, generator).expand(batch, 3).clone()
    if float(spacing_t.max() / spacing_t.min()) > ANISO_THRESHOLD:
        coarse = int(spacing_t.argmax())
        keep = torch.zeros(3, device=angles.device)
        keep[coarse] = 1
        angles = angles * keep
        scales[:, coarse] = 1
    matrix = torch.diag_embed(scales)
    for axis in range(3):
        a, b = [i for i in range(3) if i != axis]
        step = torch.eye(3, device=angles.device).repeat(batch, 1, 1)
        cos, sin = angles[:, axis].cos(), angles[:, axis].sin()
        step[:, a, a], step[:, a, b], step[:, b, a], step[:, b, b] = cos, -sin, sin, cos
        matrix = step @ matrix
    return matrix


def apply_affine(x: Tensor, matrix: Tensor, spacing: Sequence[float], mode: str = "bilinear") -> Tensor:
    """Resample (B, C, z, y, x) by :func:`sample_affine`'s matrices; outside the patch is 0.

    ``mode``: ``bilinear`` (trilinear) for images, ``nearest`` for masks. Boolean input gives boolean output.
    """
    extent = copy_to(x.device, [n * s / 2 for n, s in zip(x.shape[2:], spacing, strict=True)])
    # grid_sample counts in units of half the patch and names axes x, y, z
    theta = (copy_to(x.device, matrix) * extent[None, None, :] / extent[None, :, None]).flip(1, 2)
    theta = torch.cat((theta, torch.zeros_like(theta[..., :1])), -1)
    grid = F.affine_grid(theta.float(), [x.shape[0], 1, *x.shape[2:]], align_corners=False)
    warped = F.grid_sample(x.float(), grid, mode=mode, padding_mode="zeros", align_corners=False)
    return warped > 0.5 if x.dtype == torch.bool else warped


def input_positions(matrix: Tensor, size: Sequence[int], cell: Sequence[int], spacing: Sequence[float]) -> Tensor:
    """Positions in the input of the cells of an output of :func:`apply_affine`: offsets from its centre, mm.

    Shape: matrix (B, 3, 3) for patches of ``size`` voxels; returns (B, M, 3), the centres of all cells of ``cell``
    voxels in the order of a flattened map.
    """
    axes = [
        (torch.arange(n // c, device=matrix.device) + 0.5) * (c * s) - n * s / 2
        for n, c, s in zip(size, cell, spacing, strict=True)
    ]
    centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    return centres.to(matrix.dtype) @ matrix.mT


def augment_affine(
    image: Tensor, valid: Tensor, spacing: Sequence[float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Apply one random affine map per sample (:func:`sample_affine`) to the image and its valid mask.

    Shape: image (B, C, *spatial), valid (B, 1, *spatial) bool; both keep their shape.
    The image is 0 outside the mask.
    """
    matrix = sample_affine(len(image), spacing, generator)
    inside = apply_affine(valid, matrix, spacing, mode="nearest")
    return apply_affine(image, matrix, spacing) * inside, inside


@dataclass(frozen=True)
class Intensity:
    """Intensity changes per sample and channel: tensors (B, C, 1, 1, 1); ``noise`` is (B, C, *spatial)."""

    gamma: Tensor
    gain: Tensor
    shift: Tensor
    noise: Tensor


def sample_intensity(shape: Sequence[int], generator: torch.Generator) -> Intensity:
    """Sample gamma in [0.7, 1.5] (log-uniform), gain in [0.75, 1.25], shift in +-0.1 and noise of s.d. up to 0.1.

    Shift and noise are in units of the patch's own standard deviation. ``shape``: (B, C, *spatial).
    """
    one = (*shape[:2], *[1] * (len(shape) - 2))
    noise = torch.randn(tuple(shape), generator=generator, device=generator.device)
    return Intensity(
        gamma=_uniform(one, math.log(0.7), math.log(1.5), generator).exp(),
        gain=_uniform(one, 0.75, 1.25, generator),
        shift=_uniform(one, -0.1, 0.1, generator),
        noise=noise * _uniform(one, 0.0, 0.1, generator),
    )


def apply_intensity(x: Tensor, change: Intensity) -> Tensor:
    """Apply gamma on the patch's range, then gain about the mean, shift and noise; a constant patch stays finite."""
    axes = tuple(range(2, x.ndim))
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    span = (high - low).clamp(min=1e-6)
    y = ((x - low) / span).clamp(min=0) ** change.gamma * span + low
    mean = y.mean(axes, keepdim=True)
    std = y.std(axes, keepdim=True)
    return (y - mean) * change.gain + mean + std * (change.shift + change.noise)
