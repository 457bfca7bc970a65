"""The pictures of a comparison, as PNG: curves, paired differences, cases with contours."""

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_invariance.evaluation.statistics.effects import Effect, Level

#: Told apart by every kind of colour vision.
COLOURS = ("#ffb000", "#00c8ff", "#dc267f", "#785ef0", "#fe6100", "#009e73", "#333333")
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "legend.frameon": False}
SIDE_BY_SIDE = 4  # names of conditions that have room beside each other
VERDICT_COLOURS = {"better": "#1b7837", "worse": "#b00020", "not decided": "#555555"}


def panels(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """A figure of small pictures."""
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def show(axis: Axes, image: np.ndarray, labels: np.ndarray, title: str) -> None:
    """One slice in grey with the outline of every label; both (height, width)."""
    axis.imshow(image, cmap="gray", interpolation="nearest")
    for label in np.unique(labels[labels > 0]).astype(int):
        mask = labels == label
        if not mask.all():
            axis.contour(mask, levels=[0.5], colors=COLOURS[(label - 1) % len(COLOURS)], linewidths=1.4)
    axis.set_title(title, fontsize=8)
    axis.set_axis_off()


def png(figure: Figure) -> bytes:
    """The figure's file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def draw_levels(levels: Sequence[Level], conditions: Sequence[str], title: str) -> bytes:
    """Mean and interval of every arm over the conditions; twins are dashed in their trainer's colour."""
    arms = list(dict.fromkeys(level.arm for level in levels))
    bases = list(dict.fromkeys(arm.replace("_scratch", "") for arm in arms))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.add_subplot()
        for number, arm in enumerate(arms):
            points = sorted((conditions.index(v.condition), v) for v in levels if v.arm == arm)
            x = np.array([i for i, _ in points]) + 0.35 * ((number + 0.5) / len(arms) - 0.5)
            mean, low, high = (np.array([getattr(v, name) for _, v in points]) for name in ("mean", "low", "high"))
            twin = "_scratch" in arm
            colour = COLOURS[bases.index(arm.replace("_scratch", "")) % len(COLOURS)]
            style = {"color": colour, "linestyle": "--" if twin else "-", "mfc": "white" if twin else colour}
            errors = np.nan_to_num([mean - low, high - mean])
            axis.errorbar(x, mean, yerr=np.maximum(errors, 0), marker="o", markersize=5, capsize=3, label=arm, **style)
        slanted = {"rotation": 30, "ha": "right"} if len(conditions) > SIDE_BY_SIDE else {}
        axis.set_xticks(range(len(conditions)), conditions, **slanted)
        axis.set_xlim(-0.5, len(conditions) - 0.5)
        axis.set_ylabel(title)
        axis.grid(axis="y", alpha=0.25)
        figure.legend(loc="outside right upper", fontsize=8)
    return png(figure)


def draw_effects(effects: Sequence[Effect], title: str) -> bytes:
    """Paired differences with their intervals, a line each; those that decide nothing are grey."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.9 + 0.32 * len(effects)), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.add_subplot()
        axis.axvline(0, color="#222", linewidth=0.8)
        for line, e in enumerate(effects):
            colour = VERDICT_COLOURS[e.verdict]
            if np.isfinite(e.low):
                axis.plot([e.low, e.high], [line, line], color=colour, linewidth=2)
            axis.plot(e.mean, line, "o", color=colour, markersize=5)
        names = [f"{e.condition}: {e.arm} - {e.reference}" for e in effects]
        axis.set_yticks(range(len(effects)), names, fontsize=8)
        axis.set_ylim(len(effects) - 0.5, -0.5)
        axis.set_xlabel(title)
        axis.grid(axis="x", alpha=0.25)
    return png(figure)


def draw_heat_map(levels: Sequence[Level]) -> bytes:
    """Means of one metric in [0, 1]: a panel for each arm, a row for each condition, a column for each class."""
    arms, conditions, labels = (
        list(dict.fromkeys(getattr(v, name) for v in levels)) for name in ("arm", "condition", "label")
    )
    means = {(v.arm, v.condition, v.label): v.mean for v in levels}
    size = (2.0 + len(arms) * (0.6 + 0.62 * len(labels)), 1.4 + 0.28 * len(conditions))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(arms), squeeze=False, sharey=True)[0]
    for axis, arm in zip(axes, arms, strict=True):
        values = np.array([[means.get((arm, c, label), np.nan) for label in labels] for c in conditions])
        axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
            value = values[row, column]
            colour = "black" if value > 0.6 else "white"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        axis.set_title(arm, fontsize=7)
        axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=7)
        axis.set_yticks(range(len(conditions)), conditions, fontsize=7)
    return png(figure)


def draw_case(image: np.ndarray, segmentations: Mapping[str, np.ndarray], title: str) -> bytes:
    """The slice with most of the first segmentation (the reference): bare, then with the outlines of each.

    Args:
        image, segmentations: (slices, height, width).
    """
    reference = next(iter(segmentations.values()))
    index = int((reference > 0).sum(axis=(1, 2)).argmax())
    figure, axes = panels(1, 1 + len(segmentations))
    show(axes[0, 0], image[index], np.zeros_like(reference[index]), title)
    for axis, (name, labels) in zip(axes[0, 1:], segmentations.items(), strict=True):
        show(axis, image[index], labels[index], name)
    return png(figure)
