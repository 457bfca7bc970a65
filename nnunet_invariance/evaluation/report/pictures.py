"""The pictures of a comparison, as PNG: means, paired differences, cases with outlines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_invariance.common.pictures import COLOURS, LITERAL_TEXT, STYLE, add_legend, best_slice, panels, png, show
from nnunet_invariance.evaluation.statistics.effects import ArmMean, Effect

#: Number of conditions, and of characters of their names, that fit side by side.
SIDE_BY_SIDE, CHARACTERS = 4, 40
#: Characters on a line of the legend, with 7 for every symbol.
LEGEND_CHARACTERS = 75
VERDICT_COLOURS = {"better": "#1b7837", "worse": "#b00020", "not decided": "#555555"}


@matplotlib.rc_context(STYLE)
def draw_means(
    means: Sequence[ArmMean], conditions: Sequence[str], title: str, names: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """Mean and interval of every arm over the conditions, as PNG; twins have dashed lines in their trainer's colour.

    ``names`` are the names of arms that are shown.
    """
    arms = list(dict.fromkeys(mean.arm for mean in means))
    bases = list(dict.fromkeys(arm.replace("_scratch", "") for arm in arms))
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
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
    longest = max(len(names.get(arm, arm)) for arm in arms)
    figure.legend(loc="outside lower left", ncols=max(1, min(3, LEGEND_CHARACTERS // (longest + 7))), fontsize=9)
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
    """Paired differences with their intervals, one line each below its name, as PNG; the colour is the verdict."""
    figure = Figure(figsize=(5.6, 1.1 + 0.5 * len(effects)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    axis.axvline(0, color="#222", linewidth=0.8)
    for line, e in enumerate(effects):
        colour = VERDICT_COLOURS[e.verdict]
        if np.isfinite(e.low):
            axis.plot([e.low, e.high], [line, line], color=colour, linewidth=2)
        axis.plot(e.mean, line, "o", color=colour, markersize=5)
        shown = f"{names.get(e.arm, e.arm)} against {names.get(e.reference, e.reference)}, {e.condition}: {e.verdict}"
        name = axis.text(0, line - 0.28, shown, transform=axis.get_yaxis_transform(), va="bottom", color=colour)
        name.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_ylim(len(effects) - 0.5, -0.9)
    axis.set_xlabel(title)
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.grid(axis="x", alpha=0.25)
    return png(figure)


@matplotlib.rc_context(STYLE)
def draw_heat_map(rows: Sequence[ArmMean], names: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Means of one metric in [0, 1], as PNG: one panel per arm, one row per condition, one column per class."""
    arms = list(dict.fromkeys(row.arm for row in rows))
    conditions = list(dict.fromkeys(row.condition for row in rows))
    labels = list(dict.fromkeys(row.label for row in rows))
    means = {(row.arm, row.condition, row.label): row.mean for row in rows}
    size = (2.0 + len(arms) * (0.6 + 0.66 * len(labels)), 1.4 + 0.32 * len(conditions))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(arms), squeeze=False, sharey=True)[0]
    for axis, arm in zip(axes, arms, strict=True):
        values = np.array([[means.get((arm, c, label), np.nan) for label in labels] for c in conditions])
        axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
            value = values[row, column]
            colour = "black" if value > 0.6 else "white"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
        axis.set_title(names.get(arm, arm), fontsize=9)
        axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=9)
        axis.set_yticks(range(len(conditions)), conditions, fontsize=9)
    return png(figure)


@dataclass(frozen=True)
class ShownCase:
    """A test case for :func:`draw_cases`.

    Attributes:
        title: name and rank of the case.
        image: (slices, height, width).
        segmentations: the reference first, then the predictions, each with its title; as ``image``.

    >>> volume = np.zeros((1, 4, 4))
    >>> list(ShownCase("worst: case_1", volume, {"reference": volume}).segmentations)
    ['reference']
    """

    title: str
    image: np.ndarray
    segmentations: Mapping[str, np.ndarray]


@matplotlib.rc_context(LITERAL_TEXT)
def draw_cases(cases: Sequence[ShownCase], colours: Mapping[str, str]) -> bytes:
    """The slice of every case that shows the reference best, as PNG: a column per case, a row per segmentation."""
    aspect = max(case.image.shape[1] / case.image.shape[2] for case in cases)
    figure, axes = panels(1 + max(len(case.segmentations) for case in cases), len(cases), aspect)
    for column, case in zip(axes.T, cases, strict=True):
        reference = next(iter(case.segmentations.values()))
        index = best_slice(reference)
        low, high = np.percentile(case.image, (0.5, 99.5))
        image = np.clip(case.image[index], low, high)
        show(column[0], image, None, case.title)
        for axis, (name, labels) in zip(column[1:], case.segmentations.items(), strict=True):
            show(axis, image, labels[index], name)
    add_legend(figure, colours)
    return png(figure)
