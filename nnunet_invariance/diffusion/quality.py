"""Which generated slices are of use, and what stands in for those that are not."""

import numpy as np
import torch
from scipy.ndimage import median_filter
from torch import Tensor

from nnunet_invariance.diffusion.conditions import gradient_norm

BORDER = 1.2  # least gradient at the borders of labels, times that of the whole slice
SPREAD = 0.03  # least s.d. of a slice in [0, 1]
WINDOW = 5  # slices of the running median


def rejected_slices(images: Tensor, labels: Tensor) -> Tensor:
    """Slices that are nearly flat, or that show no edges where labels meet; (D,) bool.

    Shape: images (D, R, R) in [0, 1], labels (D, R, R).
    """
    gradient = gradient_norm(images)
    border = label_borders(labels)
    count = border.sum((1, 2))
    at_border = (gradient * border).sum((1, 2)) / count.clamp(min=1)
    faint = (count > 0) & (at_border < BORDER * gradient.mean((1, 2)))
    return faint | (images.std((1, 2), correction=0) < SPREAD)


def label_borders(labels: Tensor) -> Tensor:
    """Pixels beside one of another label, in rows or columns; (D, R, R) bool."""
    border = torch.zeros(labels.shape, dtype=torch.bool)
    for axis in (1, 2):
        size = labels.shape[axis]
        changes = labels.narrow(axis, 0, size - 1) != labels.narrow(axis, 1, size - 1)
        border.narrow(axis, 0, size - 1).logical_or_(changes)
        border.narrow(axis, 1, size - 1).logical_or_(changes)
    return border


def replace_rejected(images: Tensor, source: Tensor, rejected: Tensor) -> Tensor:
    """Source slices in place of rejected ones, with mean and s.d. of all accepted slices together; (D, R, R)."""
    good = images[~rejected]
    standard = (source - source.mean()) / source.std(correction=0).clamp(min=1e-6)
    borrowed = (standard * good.std(correction=0) + good.mean()).clamp(0, 1)
    return torch.where(rejected[:, None, None], borrowed, images)


def match_slices(images: Tensor) -> Tensor:
    """Give each slice the running median, over five slices, of the means and s.d. of slices; clipped to [0, 1]."""
    std, mean = torch.std_mean(images, (1, 2), correction=0, keepdim=True)
    wanted = [
        torch.from_numpy(median_filter(value.flatten().numpy(), WINDOW, mode="nearest").astype(np.float32))
        for value in (mean, std)
    ]
    wanted_mean, wanted_std = (value[:, None, None] for value in wanted)
    return ((images - mean) / std.clamp(min=1e-6) * wanted_std + wanted_mean).clamp(0, 1)
