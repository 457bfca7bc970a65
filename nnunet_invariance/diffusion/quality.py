"""Rejection of unusable generated slices, and their replacement."""

import numpy as np
import torch
from scipy.ndimage import median_filter
from torch import Tensor

from nnunet_invariance.diffusion.conditions import gradient_norm

BORDER = 1.2  # minimum gradient at the borders of labels, relative to that of the whole slice
SPREAD = 0.03  # minimum s.d. of a slice in [0, 1]
WINDOW = 5  # slices of the running median


def rejected_slices(images: Tensor, labels: Tensor) -> Tensor:
    """Find slices that are nearly constant, or that have no edges at the borders of labels; (D,) bool.

    Shape: images (D, R, R) in [0, 1], labels (D, R, R).
    """
    gradient = gradient_norm(images)
    border = label_borders(labels)
    count = border.sum((1, 2))
    at_border = (gradient * border).sum((1, 2)) / count.clamp(min=1)
    faint = (count > 0) & (at_border < BORDER * gradient.mean((1, 2)))
    return faint | (images.std((1, 2), correction=0) < SPREAD)


def label_borders(labels: Tensor) -> Tensor:
    """Pixels with a neighbour of another label, in rows or columns; (D, R, R) bool."""
    border = torch.zeros(labels.shape, dtype=torch.bool)
    for axis in (1, 2):
        size = labels.shape[axis]
        changes = labels.narrow(axis, 0, size - 1) != labels.narrow(axis, 1, size - 1)
        border.narrow(axis, 0, size - 1).logical_or_(changes)
        border.narrow(axis, 1, size - 1).logical_or_(changes)
    return border


def replace_rejected(images: Tensor, source: Tensor, rejected: Tensor) -> Tensor:
    """Replace rejected slices by source slices with the mean and s.d. of all accepted slices; (D, R, R)."""
    good = images[~rejected]
    standard = (source - source.mean()) / source.std(correction=0).clamp(min=1e-6)
    borrowed = (standard * good.std(correction=0) + good.mean()).clamp(0, 1)
    return torch.where(rejected[:, None, None], borrowed, images)


def match_slices(images: Tensor) -> Tensor:
    """Replace mean and s.d. of each slice by their running medians over five slices; clipped to [0, 1]."""
    std, mean = torch.std_mean(images, (1, 2), correction=0, keepdim=True)
    wanted = [
        torch.from_numpy(median_filter(value.flatten().numpy(), WINDOW, mode="nearest").astype(np.float32))
        for value in (mean, std)
    ]
    wanted_mean, wanted_std = (value[:, None, None] for value in wanted)
    return ((images - mean) / std.clamp(min=1e-6) * wanted_std + wanted_mean).clamp(0, 1)
