"""The curves of a pre-training: one row per epoch, as CSV and as a picture."""

import csv
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.tensorboard import CurveWriter

Row = dict[str, float]
PICTURE = "progress.png"
#: Columns that are no curves.
POSITIONS = frozenset({"epoch", "step", "seconds"})
#: What the picture leaves out; ``metrics.csv`` has it.
NOT_DRAWN = POSITIONS | {"lr", "iterations_per_second"}
#: Titles of quantities that every method may have.
TITLES = {
    "loss": "total loss (lower is better)",
    "held_out_loss": "loss on held-out data (lower is better)",
    "probe_dice": "Dice of the linear probe (higher is better)",
    "probe_dice_teacher": "Dice of the probe, teacher (higher is better)",
    "skipped": "steps that changed nothing (0 is best)",
}


def loss_titles(names: Iterable[str]) -> dict[str, str]:
    """Titles of single losses.

    >>> loss_titles(["inter"])
    {'inter': 'inter loss (lower is better)'}
    """
    return {name: f"{name.replace('_', ' ')} loss (lower is better)" for name in names}


def write_metrics(folder: Path, history: list[Row], problems: Sequence[str], titles: Mapping[str, str]) -> None:
    """Write ``metrics.csv`` and :data:`PICTURE` anew from all epochs so far; see :func:`draw_history`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=_names(history), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    atomic_write(folder / "metrics.csv", lambda file: file.write(text.getvalue().encode()))
    figure = draw_history(history, problems, titles)
    atomic_write(folder / PICTURE, lambda file: figure.savefig(file, format="png", dpi=100))


def write_curves(curves: CurveWriter | None, row: Row) -> None:
    """Append the values of one epoch to the curves of TensorBoard, if there are any, at its optimiser step."""
    if curves is not None:
        curves.write({name: value for name, value in row.items() if name not in POSITIONS}, int(row["step"]))


def _names(history: list[Row]) -> list[str]:
    """The quantities of all rows; those of the last row come first, because a row can lack some of them."""
    return list(dict.fromkeys(name for row in reversed(history) for name in row))


def _drawn(history: list[Row]) -> list[str]:
    """The quantities with a panel: no loss that equals the total, and skipped steps only if there are any."""
    total = [row.get("loss") for row in history]
    chosen = []
    for name in _names(history):
        values = [row.get(name) for row in history]
        repeats = name != "loss" and values == total
        if name not in NOT_DRAWN and not repeats and (name != "skipped" or any(values)):
            chosen.append(name)
    return chosen


def draw_history(
    history: list[Row], problems: Sequence[str] = (), titles: Mapping[str, str] = MappingProxyType({})
) -> Figure:
    """One panel per quantity that matters, the losses first; problems with their remedies stand above it in red.

    Args:
        titles: plain titles by name, with the good direction.
    """
    names, titles = _drawn(history), {**TITLES, **titles}
    columns = 3
    lines = -(-len(names) // columns)
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(4 * columns, 2.6 * lines), layout="constrained")
        FigureCanvasAgg(figure)
        if problems:
            lines_of = [textwrap.fill(f"Warning: {problem}", 42 * columns) for problem in problems]
            figure.suptitle("\n".join(lines_of), color="#b00020", fontsize=11, fontweight="bold", ha="left", x=0.01)
        for index, name in enumerate(names):
            axis = figure.add_subplot(lines, columns, index + 1)
            measured = [row for row in history if name in row]
            axis.plot(
                [row["epoch"] for row in measured],
                [row[name] for row in measured],
                color="#1f4e79",
                linewidth=1.4,
                marker="." if len(measured) < 20 else "",
            )
            _show_rounding_as_a_line(axis)
            axis.set_title(titles.get(name, name.replace("_", " ")), loc="left", fontsize=10)
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.ticklabel_format(axis="y", useOffset=False)
            axis.grid(alpha=0.25)
    return figure


def _show_rounding_as_a_line(axis: Axes) -> None:
    """Give a curve that changes by less than a thousandth of its values a range of that size."""
    low, high = axis.get_ylim()
    least = 1e-3 * max(abs(low), abs(high))
    if high - low < least:
        axis.set_ylim((low + high - least) / 2, (low + high + least) / 2)
