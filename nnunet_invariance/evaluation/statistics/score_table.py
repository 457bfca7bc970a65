"""Scores as matrices of draws and cases."""

from collections.abc import Sequence

import numpy as np

from nnunet_invariance.evaluation.scoring.metrics import METRICS, Metric
from nnunet_invariance.evaluation.scoring.scores import Score

#: Label of the mean over the classes.
OVERALL = "all classes"


class ScoreTable:
    """Scores as matrices (draws, cases); nan where there is no score.

    Attributes:
        conditions, arms, labels: the names that occur, in the order of their first row.
        draws, cases: sorted; ``cases`` by condition.

    >>> dice = {"a": 0.5, "b": 0.7}
    >>> rows = [Score("5 shots", 0, "A", case, "liver", dice[case], 1.0, 1.0, 9, 9) for case in dice]
    >>> ScoreTable(rows).matrix("dice", "5 shots", "A", "liver")
    array([[0.5, 0.7]])
    """

    def __init__(self, scores: Sequence[Score]) -> None:
        self.conditions = list(dict.fromkeys(s.condition for s in scores))
        self.arms = list(dict.fromkeys(s.arm for s in scores))
        self.labels = list(dict.fromkeys(s.label for s in scores))
        self.draws = sorted({s.draw for s in scores})
        self.cases = {c: sorted({s.case for s in scores if s.condition == c}) for c in self.conditions}
        self._rows: dict[tuple[str, str, str], list[Score]] = {}
        for s in scores:
            self._rows.setdefault((s.condition, s.arm, s.label), []).append(s)

    def matrix(self, metric: str, condition: str, arm: str, label: str) -> np.ndarray:
        """One metric of one arm, condition and class (draws, cases)."""
        row = {draw: i for i, draw in enumerate(self.draws)}
        column = {case: i for i, case in enumerate(self.cases[condition])}
        values = np.full((len(row), len(column)), np.nan)
        for s in self._rows.get((condition, arm, label), []):
            values[row[s.draw], column[s.case]] = getattr(s, metric)
        return values

    def matrices(self, metric: str, condition: str, arm: str) -> np.ndarray:
        """One metric of one arm and condition (classes, draws, cases)."""
        return np.stack([self.matrix(metric, condition, arm, label) for label in self.labels])

    def metrics(self) -> list[Metric]:
        """The metrics that have a value in any row."""
        rows = [s for rows in self._rows.values() for s in rows]
        return [m for m in METRICS.values() if any(np.isfinite(getattr(s, m.name)) for s in rows)]


def nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    """NumPy's nanmean without the warning for slices that have no value."""
    present = np.isfinite(values)
    count = present.sum(axis)
    return np.where(count, np.where(present, values, 0).sum(axis) / np.maximum(count, 1), np.nan)


def drop_empty(values: np.ndarray) -> np.ndarray:
    """The matrix without the rows and the columns that hold no value."""
    present = np.isfinite(values)
    return values[present.any(1)][:, present.any(0)]
