"""The pictures of a comparison, as PNG: means, paired differences, cases with contours."""

import io
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_invariance.evaluation.statistics.effects import ArmMean, Effect

#: Distinguishable with every kind of colour vision.
COLOURS = ("#ffb000", "#00c8ff", "#dc267f", "#785ef0", "#fe6100", "#009e73", "#333333")
#: Names of cases and arms are no mathematics, even if they contain "$" or "^".
LITERAL_TEXT: dict[Any, Any] = {"text.parse_math": False}
STYLE: dict[Any, Any] = {
    **LITERAL_TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "legend.frameon": False,
}
#: Number of conditions, and of characters of their names, that fit side by side.
SIDE_BY_SIDE, CHARACTERS = 4, 60
VERDICT_COLOURS = {"better": "#1b7837", "worse": "#b00020", "not decided": "#555555"}


def colour_of(label: int) -> str:
    """Colour of the outline of a label (1 or more)."""
    return COLOURS[(label - 1) % len(COLOURS)]


@matplotlib.rc_context(LITERAL_TEXT)
def panels(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of small pictures; its axes (rows, columns)."""
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def show(axis: Axes, image: np.ndarray, labels: np.ndarray, title: str) -> None:
    """Draw one slice in grey with the outline of every label; both are (height, width)."""
    axis.imshow(image, cmap="gray", interpolation="nearest")
    for label in np.unique(labels[labels > 0]).astype(int):
        mask = labels == label
        if not mask.all():
            axis.contour(mask, levels=[0.5], colors=colour_of(int(label)), linewidths=1.4)
    axis.set_title(title, fontsize=8)
    axis.set_axis_off()


@matplotlib.rc_context(LITERAL_TEXT)
def png(figure: Figure) -> bytes:
    """The content of the figure's PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


@matplotlib.rc_context(STYLE)
def draw_means(
    means: Sequence[ArmMean], conditions: Sequence[str], title: str, names: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """Mean and interval of every arm over the conditions, as PNG; twins have dashed lines in their trainer's colour.

    ``names`` are the names of arms that are shown.
    """
    arms = list(dict.fromkeys(mean.arm for mean in means))
    bases = list(dict.fromkeys(arm.replace("_scratch", "") for arm in arms))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    for number, arm in enumerate(arms):
        points = sorted((conditions.index(m.condition), m.mean, m.low, m.high) for m in means if m.arm == arm)
        index, mean, low, high = np.array(points).T
        x = index + 0.35 * ((number + 0.5) / len(arms) - 0.5)
        twin = "_scratch" in arm
        colour = COLOURS[bases.index(arm.replace("_scratch", "")) % len(COLOURS)]
        errors = np.maximum(np.nan_to_num([mean - low, high - mean]), 0)
        axis.errorbar(
            x,
            mean,
            yerr=errors,
            color=colour,
            linestyle="--" if twin else "-",
            mfc="white" if twin else colour,
            marker="o",
            markersize=5,
            capsize=3,
            label=names.get(arm, arm),
        )
    _label_conditions(axis, conditions)
    axis.set_ylabel(title)
    axis.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=8)
    return png(figure)


def _label_conditions(axis: Axes, conditions: Sequence[str]) -> None:
    """Tick labels of the conditions, slanted where they would overlap."""
    overlap = len(conditions) > SIDE_BY_SIDE or sum(map(len, conditions)) > CHARACTERS
    axis.set_xticks(range(len(conditions)), conditions)
    for label in axis.get_xticklabels() if overlap else []:
        label.set(rotation=30, ha="right", rotation_mode="anchor")
    axis.set_xlim(-0.5, len(conditions) - 0.5)


@matplotlib.rc_context(STYLE)
def draw_effects(effects: Sequence[Effect], title: str, names: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Paired differences with their intervals, one line each, as PNG; undecided ones are grey."""
    figure = Figure(figsize=(9, 0.9 + 0.32 * len(effects)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    axis.axvline(0, color="#222", linewidth=0.8)
    for line, e in enumerate(effects):
        colour = VERDICT_COLOURS[e.verdict]
        if np.isfinite(e.low):
            axis.plot([e.low, e.high], [line, line], color=colour, linewidth=2)
        axis.plot(e.mean, line, "o", color=colour, markersize=5)
    shown = [f"{e.condition}: {names.get(e.arm, e.arm)} - {names.get(e.reference, e.reference)}" for e in effects]
    axis.set_yticks(range(len(effects)), shown, fontsize=8)
    axis.set_ylim(len(effects) - 0.5, -0.5)
    axis.set_xlabel(title)
    axis.grid(axis="x", alpha=0.25)
    return png(figure)


@matplotlib.rc_context(STYLE)
def draw_heat_map(rows: Sequence[ArmMean], names: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Means of one metric in [0, 1], as PNG: one panel per arm, one row per condition, one column per class."""
    arms = list(dict.fromkeys(row.arm for row in rows))
    conditions = list(dict.fromkeys(row.condition for row in rows))
    labels = list(dict.fromkeys(row.label for row in rows))
    means = {(row.arm, row.condition, row.label): row.mean for row in rows}
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
        axis.set_title(names.get(arm, arm), fontsize=7)
        axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=7)
        axis.set_yticks(range(len(conditions)), conditions, fontsize=7)
    return png(figure)


def draw_case(image: np.ndarray, segmentations: Mapping[str, np.ndarray], title: str) -> bytes:
    """The slice with the most foreground of the reference, without and with the outlines of each segmentation, as PNG.

    Args:
        image, segmentations: (slices, height, width); the first segmentation is the reference.
    """
    reference = next(iter(segmentations.values()))
    index = int((reference > 0).sum(axis=(1, 2)).argmax())
    figure, axes = panels(1, 1 + len(segmentations))
    show(axes[0, 0], image[index], np.zeros_like(reference[index]), title)
    for axis, (name, labels) in zip(axes[0, 1:], segmentations.items(), strict=True):
        show(axis, image[index], labels[index], name)
    return png(figure)
