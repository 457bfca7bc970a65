"""The curves of a pre-training: one row per epoch, as CSV and as a picture."""

import csv
import io
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_invariance.common.atomic import atomic_write

Row = dict[str, float]


def write_metrics(folder: Path, history: list[Row]) -> None:
    """Write ``metrics.csv`` and ``progress.png`` anew from all epochs so far."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    atomic_write(folder / "metrics.csv", lambda file: file.write(text.getvalue().encode()))
    figure = draw_history(history)
    atomic_write(folder / "progress.png", lambda file: figure.savefig(file, format="png", dpi=100))


def draw_history(history: list[Row]) -> Figure:
    """One panel per quantity: the losses first, then diagnostics, learning rate and speed."""
    skip = {"epoch", "step", "seconds"}
    names = [n for n in history[0] if n not in skip]
    columns = 3
    lines = -(-len(names) // columns)
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(4 * columns, 2.6 * lines), layout="constrained")
        FigureCanvasAgg(figure)
        epochs = [row["epoch"] for row in history]
        for index, name in enumerate(names):
            axis = figure.add_subplot(lines, columns, index + 1)
            axis.plot(
                epochs,
                [row[name] for row in history],
                color="#1f4e79",
                linewidth=1.4,
                marker="." if len(epochs) < 20 else "",
            )
            axis.set_title(name.replace("_", " "), loc="left", fontsize=10)
            axis.set_xlabel("epoch")
            axis.grid(alpha=0.25)
    return figure
