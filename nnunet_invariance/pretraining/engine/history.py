"""The curves of a pre-training: one row per epoch, as CSV and as a picture."""

import csv
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.tensorboard import CurveWriter

Row = dict[str, float]
PICTURE = "progress.png"
#: Columns that are no curves.
POSITIONS = frozenset({"epoch", "step", "seconds"})


def write_metrics(folder: Path, history: list[Row], problems: Sequence[str] = ()) -> None:
    """Write ``metrics.csv`` and :data:`PICTURE` anew from all epochs so far; the picture shows the problems in red."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=_names(history), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    atomic_write(folder / "metrics.csv", lambda file: file.write(text.getvalue().encode()))
    figure = draw_history(history, problems)
    atomic_write(folder / PICTURE, lambda file: figure.savefig(file, format="png", dpi=100))


def write_curves(curves: CurveWriter | None, row: Row) -> None:
    """Append the values of one epoch to the curves of TensorBoard, if there are any, at its optimiser step."""
    if curves is not None:
        curves.write({name: value for name, value in row.items() if name not in POSITIONS}, int(row["step"]))


def _names(history: list[Row]) -> list[str]:
    """The quantities of all rows; those of the last row come first, because a row can lack some of them."""
    return list(dict.fromkeys(name for row in reversed(history) for name in row))


def draw_history(history: list[Row], problems: Sequence[str] = ()) -> Figure:
    """One panel per quantity: the losses first, then diagnostics, learning rate and speed; problems are a red title."""
    names = [n for n in _names(history) if n not in POSITIONS]
    columns = 3
    lines = -(-len(names) // columns)
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(4 * columns, 2.6 * lines), layout="constrained")
        FigureCanvasAgg(figure)
        if problems:
            lines_of = [textwrap.fill(problem, 46 * columns) for problem in problems]
            figure.suptitle("\n".join(lines_of), color="#b00020", fontsize=10, fontweight="bold", ha="left", x=0.01)
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
            axis.set_title(name.replace("_", " "), loc="left", fontsize=10)
            axis.set_xlabel("epoch")
            axis.grid(alpha=0.25)
    return figure
