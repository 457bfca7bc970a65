"""Columns of slices of volumes, for the picture of what a network sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from nnunet_invariance.common.pictures import panels, png, show

#: The largest number of rows.
ROWS = 4


@dataclass(frozen=True)
class Panel:
    """One column of the picture, with a volume per row.

    Attributes:
        title: of the column.
        volumes: (N, z, y, x), any number of rows.
        window: volumes whose intensities set the range of grey values, as ``volumes``; None: its own.
        points: (N, 3) voxel positions; the slice passes through the point, which a cross marks. None: middle slice.
        rows: names of the rows.

    >>> Panel("original", torch.zeros(2, 4, 4, 4)).rows
    ()
    """

    title: str
    volumes: Tensor
    window: Tensor | None = None
    points: Tensor | None = None
    rows: Sequence[str] = ()


def restoration(masked: Tensor, restored: Tensor, image: Tensor, hidden: Tensor) -> list[Panel]:
    """Columns of a masked reconstruction: input, hidden voxels as the network restores them, and original.

    Args:
        masked, restored, image: (N, C, z, y, x); the first channel is shown.
        hidden: (N, 1, z, y, x) bool.
    """
    window = image[:, 0]
    composed = torch.where(hidden[:, 0], restored[:, 0].to(window.dtype), window)
    return [
        Panel("input, cells hidden", masked[:, 0], window),
        Panel("hidden cells restored", composed, window),
        Panel("original", window),
    ]


def draw_panels(columns: Sequence[Panel], heading: str) -> bytes:
    """The panels as PNG: a column per panel, a row per volume, at most :data:`ROWS`."""
    rows = min(ROWS, len(columns[0].volumes))
    height, width = columns[0].volumes.shape[2:]
    figure, axes = panels(rows, len(columns), height / width)
    figure.suptitle(heading, fontsize=9, ha="left", x=0.01)
    for panel, column in zip(columns, axes.T, strict=True):
        for row in range(rows):
            _draw(panel, row, column[row])
    return png(figure)


def _draw(panel: Panel, row: int, axis: Axes) -> None:
    volume = panel.volumes[row].detach().float().cpu().numpy()
    window = volume if panel.window is None else panel.window[row].detach().float().cpu().numpy()
    point = np.array(volume.shape) // 2
    if panel.points is not None:
        point = np.clip(panel.points[row].round().long().cpu().numpy(), 0, np.array(volume.shape) - 1)
    low, high = np.percentile(window, (0.5, 99.5))
    title = panel.title + (f": {panel.rows[row]}" if panel.rows else "")
    show(axis, np.clip(volume[point[0]], low, high), None, title)
    axis.images[0].set_clim(low, max(high, low + 1e-6))
    if panel.points is not None:
        axis.plot(point[2], point[1], "+", color="#ffb000", markersize=14, markeredgewidth=2)
