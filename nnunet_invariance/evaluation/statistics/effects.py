"""From scores to statements: every contrast of a comparison with its interval, test and verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nnunet_invariance.evaluation.scoring.scores import Score
from nnunet_invariance.evaluation.statistics.bootstrap import (
    crossed_interval,
    holm,
    paired_difference,
    simulated_coverage,
)

METRICS = ("dice", "nsd", "hd95")
SMALLER_IS_BETTER = {"hd95"}
OVERALL = "all classes"


@dataclass(frozen=True)
class Contrast:
    """An arm against its reference; Holm's correction is over the contrasts of one family."""

    arm: str
    reference: str
    family: str


@dataclass(frozen=True)
class Effect:
    """One contrast, condition, metric and class; the numbers are those of ``PairedDifference``.

    Attributes:
        label: a class, or "all classes": each pair's mean over the classes that both arms have a number for.
        p_holm: adjusted over the contrasts of the family in this condition, metric and class.
        verdict: "better" or "worse" where the interval does not hold 0, else "not decided".
        coverage_low, coverage_high: how often such intervals hold the truth in simulated experiments of this size.
    """

    metric: str
    condition: str
    family: str
    arm: str
    reference: str
    label: str
    mean: float
    low: float
    high: float
    draws: int
    cases: int
    pairs: int
    p: float
    p_holm: float
    effect: float
    verdict: str
    coverage_low: float
    coverage_high: float


@dataclass(frozen=True)
class Level:
    """Mean of one arm under one condition, with its 95 % interval over draws and cases."""

    metric: str
    condition: str
    arm: str
    label: str
    mean: float
    low: float
    high: float
    draws: int
    cases: int


class Table:
    """Scores as matrices (draws, cases); what is not there is nan."""

    def __init__(self, scores: Sequence[Score]) -> None:
        self.conditions, self.arms, self.labels = (
            list(dict.fromkeys(getattr(s, name) for s in scores)) for name in ("condition", "arm", "label")
        )
        self.draws = sorted({s.draw for s in scores})
        self.cases = {c: sorted({s.case for s in scores if s.condition == c}) for c in self.conditions}
        self._rows: dict[tuple[str, str, str], list[Score]] = {}
        for s in scores:
            self._rows.setdefault((s.condition, s.arm, s.label), []).append(s)

    def matrix(self, metric: str, condition: str, arm: str, label: str) -> np.ndarray:
        """One metric of one arm, condition and class."""
        row, column = ({v: i for i, v in enumerate(names)} for names in (self.draws, self.cases[condition]))
        values = np.full((len(row), len(column)), np.nan)
        for s in self._rows.get((condition, arm, label), []):
            values[row[s.draw], column[s.case]] = getattr(s, metric)
        return values

    def matrices(self, metric: str, condition: str, arm: str) -> np.ndarray:
        """One metric of one arm and condition (classes, draws, cases)."""
        return np.stack([self.matrix(metric, condition, arm, label) for label in self.labels])

    def metrics(self) -> list[str]:
        """The metrics that have a number anywhere."""
        rows = [s for rows in self._rows.values() for s in rows]
        return [m for m in METRICS if any(np.isfinite(getattr(s, m)) for s in rows)]


def nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    """As NumPy's, without a warning where nothing is to be averaged."""
    present = np.isfinite(values)
    count = present.sum(axis)
    return np.where(count, np.where(present, values, 0).sum(axis) / np.maximum(count, 1), np.nan)


def compare(scores: Sequence[Score], contrasts: Sequence[Contrast], seed: int = 0) -> list[Effect]:
    """Every contrast in every condition, metric and class; a contrast without a common pair is left out."""
    table = Table(scores)
    effects = []
    for metric in table.metrics():
        for condition in table.conditions:
            found = [e for c in contrasts for e in _effects(table, metric, condition, c, seed)]
            effects += _adjusted(found)
    return effects


def _effects(table: Table, metric: str, condition: str, contrast: Contrast, seed: int) -> list[Effect]:
    ours, theirs = (table.matrices(metric, condition, arm) for arm in (contrast.arm, contrast.reference))
    differences = ours - theirs
    effects = []
    for label, d in ((OVERALL, nanmean(differences, 0)), *zip(table.labels, differences, strict=True)):
        found = paired_difference(d, seed)
        if not found.pairs:
            continue
        verdict = _verdict(found.low, found.high, metric)
        coverage = simulated_coverage(found.draws, found.cases) if found.cases > 1 else (np.nan, np.nan)
        names = (metric, condition, contrast.family, contrast.arm, contrast.reference, label)
        numbers = (found.mean, found.low, found.high, found.draws, found.cases, found.pairs, found.p)
        effects.append(Effect(*names, *numbers, np.nan, found.effect, verdict, *coverage))
    return effects


def _verdict(low: float, high: float, metric: str) -> str:
    if not (low > 0 or high < 0):
        return "not decided"
    return "better" if (low > 0) != (metric in SMALLER_IS_BETTER) else "worse"


def _adjusted(effects: list[Effect]) -> list[Effect]:
    """Holm's correction over the arms of each family and class."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, e in enumerate(effects):
        groups.setdefault((e.family, e.label), []).append(index)
    adjusted = list(effects)
    for indices in groups.values():
        for index, p in zip(indices, holm([effects[i].p for i in indices]), strict=True):
            adjusted[index] = replace(effects[index], p_holm=p)
    return adjusted


def levels(scores: Sequence[Score], seed: int = 0) -> list[Level]:
    """Mean and interval of every arm, condition, metric and class, over the draws that the arm has finished."""
    table = Table(scores)
    rows = []
    for metric in table.metrics():
        for condition in table.conditions:
            for arm in table.arms:
                matrices = table.matrices(metric, condition, arm)
                for label, v in ((OVERALL, nanmean(matrices, 0)), *zip(table.labels, matrices, strict=True)):
                    present = np.isfinite(v)
                    if present.any():
                        v = v[present.any(1)][:, present.any(0)]
                        rows.append(
                            Level(
                                metric,
                                condition,
                                arm,
                                label,
                                float(np.nanmean(v)),
                                *crossed_interval(v, seed),
                                *v.shape,
                            )
                        )
    return rows
