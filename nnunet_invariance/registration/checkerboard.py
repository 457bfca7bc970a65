"""Checkerboard images of the fixed and the warped image, for visual inspection of a registration."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_invariance.common.atomic import atomic_write_path

SQUARES = 8  # along the longer side of a slice
COLUMNS = ("fixed", "moving, affine", "moving, warped", "checkerboard before", "checkerboard after")


def checkerboard(one: np.ndarray, other: np.ndarray, squares: int = SQUARES) -> np.ndarray:
    """Combine two slices of the same shape in alternating squares.

    >>> checkerboard(np.zeros((2, 2), int), np.ones((2, 2), int), squares=2).tolist()
    [[0, 1], [1, 0]]
    """
    side = max(1, -(-max(one.shape) // squares))
    rows, columns = np.indices(one.shape) // side
    return np.where((rows + columns) % 2 == 0, one, other)


def write_checkerboard(path: Path, fixed: sitk.Image, before: sitk.Image, after: sitk.Image) -> None:
    """Write a PNG with the middle slice along each axis; each image is scaled to its 1st and 99th percentile.

    Raises:
        OutputError: the file cannot be written.
    """
    volumes = [_scaled(sitk.GetArrayFromImage(image)) for image in (fixed, before, after)]
    spacing = fixed.GetSpacing()[::-1]
    figure = Figure(figsize=(15, 9.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(COLUMNS))
    for axis in range(3):
        planes = [volume.take(volume.shape[axis] // 2, axis) for volume in volumes]
        planes += [checkerboard(planes[0], planes[1]), checkerboard(planes[0], planes[2])]
        row, column = (s for a, s in enumerate(spacing) if a != axis)
        for place, plane in zip(axes[axis], planes, strict=True):
            place.imshow(plane, cmap="gray", vmin=0, vmax=1, aspect=row / column, interpolation="nearest")
            place.set(xticks=[], yticks=[])
    for place, title in zip(axes[0], COLUMNS, strict=True):
        place.set_title(title)
    atomic_write_path(path, lambda temporary: figure.savefig(temporary, dpi=80))


def _scaled(x: np.ndarray) -> np.ndarray:
    low, high = np.quantile(x, (0.01, 0.99))
    return np.clip((x - low) / max(high - low, 1e-7), 0, 1)
