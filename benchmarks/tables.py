"""Markdown tables of a comparison, which may be unfinished."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_invariance.evaluation.statistics.score_table import OVERALL

#: Files of a comparison that are small and show no image.
COMPARISON_TABLES = ("scores.csv", "means.csv", "effects.csv", "ranking.csv", "comparison.json")


def mean_table(path: Path) -> str:
    """Mean Dice over the classes with its interval: one row per arm, one column per condition."""
    rows = [row for row in read_rows(path) if row["metric"] == "dice" and row["label"] == OVERALL]
    conditions, arms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("condition", "arm"))
    cells = {(row["arm"], row["condition"]): interval(row, "{:.3f}") for row in rows}
    lines = [[arm, *(cells.get((arm, condition), "") for condition in conditions)] for arm in arms]
    return markdown(["Dice", *conditions], lines)


def effect_table(path: Path) -> str:
    """Paired differences of the mean Dice over the classes."""
    rows = [row for row in read_rows(path) if row["metric"] == "dice" and row["label"] == OVERALL]
    lines = [
        [
            r["condition"],
            r["arm"],
            r["reference"],
            interval(r, "{:+.3f}"),
            f"{r['draws']} x {r['cases']}",
            r["verdict"],
        ]
        for r in rows
    ]
    return markdown(["condition", "arm", "against", "difference", "draws x cases", "verdict"], lines)


def interval(row: dict[str, str], form: str) -> str:
    """The mean of a row with its interval, as text."""
    mean, low, high = (form.format(float(row[key])) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if np.isfinite(float(row["low"])) else f"{mean} (one case)"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
