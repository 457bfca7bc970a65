"""Grids of slices with the outlines of classes and their legend, as PNG."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

#: Distinguishable with every kind of colour vision.
COLOURS = ("#ffb000", "#00c8ff", "#dc267f", "#785ef0", "#fe6100", "#009e73", "#333333")
#: Names of cases and arms are no mathematics, even if they contain "$" or "^".
LITERAL_TEXT: dict[Any, Any] = {"text.parse_math": False}
STYLE: dict[Any, Any] = {
    **LITERAL_TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "legend.frameon": False,
}
#: Largest number of characters of the legend's names side by side.
LEGEND_CHARACTERS = 60


def colour_of(label: int) -> str:
    """Colour of the outline of a label (1 or more)."""
    return COLOURS[(label - 1) % len(COLOURS)]


def class_colours(labels: Mapping[str, Any]) -> dict[str, str]:
    """Colour of the outline of every class of a dataset.json whose label is one value.

    >>> class_colours({"background": 0, "liver": 1, "ignore": 2})
    {'liver': '#ffb000'}
    """
    values = {name: value[0] if isinstance(value, list) else value for name, value in labels.items()}
    return {name: colour_of(int(value)) for name, value in values.items() if int(value) and name != "ignore"}


@matplotlib.rc_context(LITERAL_TEXT)
def panels(rows: int, columns: int, aspect: float = 1.0) -> tuple[Figure, np.ndarray]:
    """A grid of small pictures and its axes (rows, columns); ``aspect`` is the height of a picture by its width."""
    figure = Figure(figsize=(2.2 * columns, (2.1 * min(max(aspect, 0.4), 2.0) + 0.3) * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def show(axis: Axes, image: np.ndarray, labels: np.ndarray | None, title: str) -> None:
    """Draw one slice (height, width) in grey, or (height, width, 3) in colours, with the outline of every label."""
    axis.imshow(image, cmap="gray", interpolation="nearest")
    for label in [] if labels is None else np.unique(labels[labels > 0]).astype(int):
        mask = labels == label
        if not mask.all():
            axis.contour(mask, levels=[0.5], colors=colour_of(int(label)), linewidths=1.4)
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()


@matplotlib.rc_context(LITERAL_TEXT)
def add_legend(figure: Figure, colours: Mapping[str, str]) -> None:
    """Name the classes below the pictures, each with the colour of its outline."""
    lines = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in colours.items()]
    columns = max(1, min(len(lines), LEGEND_CHARACTERS // (4 + max(map(len, colours), default=1))))
    figure.legend(handles=lines, loc="outside lower left", ncols=columns, fontsize=9, frameon=False)


def best_slice(labels: np.ndarray) -> int:
    """Index of the slice (first axis) that shows all classes best: the largest sum of their shares of their maxima.

    >>> best_slice(np.array([[[1, 1]], [[1, 2]], [[0, 0]]]))
    1
    """
    areas = [(labels == label).sum(axis=(1, 2)) for label in np.unique(labels[labels > 0])]
    return int(np.sum([area / area.max() for area in areas], axis=0).argmax()) if areas else len(labels) // 2


@matplotlib.rc_context(LITERAL_TEXT)
def png(figure: Figure) -> bytes:
    """The content of the figure's PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
