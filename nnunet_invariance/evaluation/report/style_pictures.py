"""Pictures of style interventions on an image."""

from collections.abc import Sequence

import numpy as np
import torch

from nnunet_invariance.augmentation.interventions import INTERVENTIONS
from nnunet_invariance.augmentation.interventions.base import Domain, coarse_axes, match_statistics
from nnunet_invariance.common.pictures import best_slice, panels, png, show


def draw_interventions(
    image: np.ndarray,
    labels: np.ndarray,
    seed: int,
    draws: int = 3,
    styles: Sequence[str] = tuple(INTERVENTIONS),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> bytes:
    """The slice that shows the labels best, without and with outlines, and in each style; one row per sample, as PNG.

    Args:
        image, labels: (slices, height, width); the whole volume is changed, as a patch is in training.
        spacing: mm per axis.
    """
    index = best_slice(labels)
    volume = torch.as_tensor(image, dtype=torch.float32)[None, None]
    volume = (volume - volume.mean()) / volume.std().clamp(min=1e-6)
    tissue = torch.as_tensor(labels.astype(np.int64))[None, None]
    domain = Domain(tuple(volume.shape), int(labels.max()) + 1, coarse_axes(spacing))
    generator = torch.Generator().manual_seed(seed)
    figure, axes = panels(draws, 1 + len(styles))
    for number, row in enumerate(axes):
        show(row[0], volume[0, 0, index].numpy(), labels[index] if number else None, "labels" if number else "image")
        for axis, style in zip(row[1:], styles, strict=True):
            intervention = INTERVENTIONS[style]()
            styled = intervention.apply(volume, tissue, intervention.sample(domain, generator))
            shown = match_statistics(styled, volume)[0, 0, index].numpy()
            show(axis, shown, None, style)
    return png(figure)
