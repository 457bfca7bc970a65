"""Interventions computed from their published equations with loops and NumPy, as oracles of the fast implementations.

The functions with the suffix ``_published`` also sample their own parameters, as the publications describe it; they
serve to compare distributions. The others take parameters of the package.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.signal import correlate2d
from torch import Tensor

from nnunet_invariance.augmentation.interventions.gin import GINParameters
from nnunet_invariance.augmentation.interventions.slaug import Curves


def voxels(image: Tensor) -> itertools.product:
    """Indices of all voxels of the spatial axes of (B, C, *spatial)."""
    return itertools.product(*(range(n) for n in image.shape[2:]))


def unit(values: Tensor) -> Tensor:
    """Scale to [0, 1]; a constant becomes 0."""
    low, high = values.min(), values.max()
    return (values - low) / max(high - low, 1e-6)


def convolution(x: np.ndarray, weight: np.ndarray, shift: Sequence[float]) -> np.ndarray:
    """Convolve (C_in, *spatial) with (C_out, C_in, *kernel), zero outside, voxel by voxel."""
    out = np.zeros((len(weight), *x.shape[1:]))
    half = [k // 2 for k in weight.shape[2:]]
    for o in range(len(weight)):
        for voxel in itertools.product(*(range(n) for n in x.shape[1:])):
            total = shift[o]
            for offset in itertools.product(*(range(k) for k in weight.shape[2:])):
                at = tuple(p + k - h for p, k, h in zip(voxel, offset, half, strict=True))
                if all(0 <= a < n for a, n in zip(at, x.shape[1:], strict=True)):
                    for i in range(len(x)):
                        total += weight[(o, i, *offset)] * x[(i, *at)]
            out[(o, *voxel)] = total
    return out


def gin(image: Tensor, params: GINParameters) -> Tensor:
    """GIN sample by sample."""
    results = []
    for b, sample in enumerate(image.double().numpy()):
        x = sample
        for layer, (weight, shift) in enumerate(zip(params.weights, params.shifts, strict=True)):
            wide = len(weight) // len(image)
            own = slice(b * wide, (b + 1) * wide)
            x = convolution(x, weight[own].double().numpy(), shift[own].double().numpy())
            if layer < 3:
                x = np.where(x > 0, x, 0.01 * x)
        a = float(params.alpha[b])
        m = a * x + (1 - a) * sample
        results.append(m * math.sqrt((sample**2).sum()) / (math.sqrt((m**2).sum()) + 1e-5))
    return torch.from_numpy(np.stack(results)).float()


def kmeans(values: Tensor, clusters: int) -> list[int]:
    """Cluster of each value: Lloyd on values rounded to 256 levels, from the quantiles (k + 1/2) / clusters."""
    levels = sorted(round(float(v) * 255) for v in values)
    centres: list[float] = [levels[max(math.ceil(len(levels) * (k + 0.5) / clusters) - 1, 0)] for k in range(clusters)]
    for _ in range(10):
        groups: list[list[int]] = [[] for _ in centres]
        for level in levels:
            groups[min(range(clusters), key=lambda k: abs(level - centres[k]))].append(level)
        centres = [sum(g) / len(g) if g else c for g, c in zip(groups, centres, strict=True)]
    return [min(range(clusters), key=lambda k: abs(round(float(v) * 255) - centres[k])) for v in values]


def tissues(image: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Tissues (B, C, *spatial), label by label."""
    result = torch.zeros(image.shape, dtype=torch.long)
    for b, c in itertools.product(*map(range, image.shape[:2])):
        scaled = unit(image[b, c])
        for label in range(classes):
            inside = labels[b, 0] == label
            first, clusters = (0, 6) if label == 0 else (6 + 2 * (label - 1), 2)
            if inside.any():
                result[b, c][inside] = torch.tensor(kmeans(scaled[inside], clusters)) + first
    return result


def bezier_curve(points: Tensor, inverted: bool, values: np.ndarray) -> np.ndarray:
    """The Bezier curve through (0, 0), p, q and (1, 1) at 256 parameters, sorted or reversed, then interpolated."""
    (px, py), (qx, qy) = points.tolist()
    xs, ys = [], []
    for i in range(256):
        t = i / 255
        xs.append(3 * px * t * (1 - t) ** 2 + 3 * qx * t**2 * (1 - t) + t**3)
        ys.append(3 * py * t * (1 - t) ** 2 + 3 * qy * t**2 * (1 - t) + t**3)
    return np.interp(values, sorted(xs), ys[::-1] if inverted else sorted(ys))


def slaug(image: Tensor, regions: Tensor, curves: Curves) -> Tensor:
    """SLAug region by region: the curve spans the region's own range."""
    result = torch.zeros_like(image)
    for b, c in itertools.product(*map(range, image.shape[:2])):
        scaled = unit(image[b, c])
        for r in regions[b, 0].unique().tolist():
            inside = regions[b, 0] == r
            values = scaled[inside]
            low, high = float(values.min()), float(values.max())
            own = (values.numpy() - low) / max(high - low, 1e-6)
            curve = bezier_curve(curves.points[b, c, r], bool(curves.inverted[b, c, r]), own)
            styled = torch.from_numpy(low + (high - low) * curve)
            ordered = styled.sort().values
            bottom, top = (float(ordered[max(math.ceil(len(ordered) * q) - 1, 0)]) for q in (0.2, 0.8))
            shift = min(max(float(curves.shift[b, c, r]), -bottom), 1 - top)
            styled = (styled * curves.scale[b, c, r] + shift).clamp(0, 1)
            result[b, c][inside] = torch.where(values <= 0.01, values, styled.float())
    return result


def gin_published(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """GIN (arXiv 2111.12525) of one image (Y, X), with parameters of its own.

    Four convolutions of size 1 or 3 with N(0, 1) weights and shifts, two channels between them and leaky ReLU of slope
    0.01; a blend with the image of weight U(0, 1), scaled to the Frobenius norm of the image.
    """
    x = image[None]
    for layer, wide in enumerate((2, 2, 2, 1)):
        size = rng.choice((1, 3))
        weight, shift = rng.standard_normal((wide, len(x), size, size)), rng.standard_normal(wide)
        x = np.stack([sum(correlate2d(c, k, "same") for c, k in zip(x, w, strict=True)) for w in weight])
        x = x + shift[:, None, None]
        x = np.where(x > 0, x, 0.01 * x) if layer < 3 else x
    alpha = rng.random()
    blend = alpha * x[0] + (1 - alpha) * image
    return blend * np.linalg.norm(image) / (np.linalg.norm(blend) + 1e-5)


def blend_field_published(size: int, points: int, rng: np.random.Generator) -> np.ndarray:
    """Blend of IPA in a cube: unit-norm control points, linear interpolation, exponential, scaled to [0, 1]."""
    grid = rng.standard_normal((points,) * 3)
    field = grid / math.sqrt((grid**2).sum())
    position = np.linspace(0, points - 1, size)
    for axis in range(3):
        field = np.apply_along_axis(lambda line: np.interp(position, np.arange(points), line), axis, field)
    field = np.exp(field)
    return (field - field.min()) / (field.max() - field.min())


def slaug_published(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The local form of SLAug (arXiv 2211.14805) with parameters of its own; ``image`` in [0, 1].

    Per label: a Bezier curve whose control points are uniform in the label's range of intensities, inverted for the
    background and by chance elsewhere; scale N(1, 0.1) clipped to [0.9, 1.1]; location N(0, 0.5), clipped so that the
    20th and 80th percentile stay in [0, 1]. Intensities up to 0.01 stay.
    """
    result = image.copy()
    for label in np.unique(labels):
        inside = labels == label
        values = image[inside]
        low, high = values.min(), values.max()
        inner = rng.uniform(low, high, (2, 2))
        t = np.linspace(0, 1, 2000)[:, None]
        curve = (1 - t) ** 3 * low + 3 * t * (1 - t) ** 2 * inner[0] + 3 * t**2 * (1 - t) * inner[1] + t**3 * high
        x, y = curve.T
        inverted = label == 0 or rng.random() < 0.5
        styled = np.interp(values, np.sort(x), y[::-1] if inverted else np.sort(y))
        scale = np.clip(rng.normal(1, 0.1), 0.9, 1.1)
        location = np.clip(rng.normal(0, 0.5), -np.percentile(styled, 20), 1 - np.percentile(styled, 80))
        result[inside] = np.clip(styled * scale + location, 0, 1)
    return np.where(image <= 0.01, image, result)
