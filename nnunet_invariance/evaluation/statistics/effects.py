"""Mean scores of arms, and paired differences between arms with interval, test and verdict."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from nnunet_invariance.common.wording import counted
from nnunet_invariance.evaluation.scoring.metrics import Metric
from nnunet_invariance.evaluation.scoring.scores import Score
from nnunet_invariance.evaluation.statistics.coverage import simulated_coverage
from nnunet_invariance.evaluation.statistics.intervals import RESAMPLES, crossed_interval
from nnunet_invariance.evaluation.statistics.rank_tests import holm, rank_biserial, signed_rank
from nnunet_invariance.evaluation.statistics.ranking import false_claim_probability
from nnunet_invariance.evaluation.statistics.score_table import OVERALL, ScoreTable, drop_empty, nanmean

Verdict = Literal["better", "worse", "not decided"]
#: A verdict needs this many draws, and intervals that reach this coverage in every simulated mixture of variance.
LEAST_DRAWS, LEAST_COVERAGE = 2, 0.8


@dataclass(frozen=True)
class Contrast:
    """An arm and its reference; Holm's correction is over the contrasts of one family.

    >>> Contrast("AliceTrainer", "AliceTrainer_scratch", "own twin").reference
    'AliceTrainer_scratch'
    """

    arm: str
    reference: str
    family: str


@dataclass(frozen=True)
class PairedDifference:
    """Statistics of one matrix of paired differences.

    Attributes:
        mean: over all pairs.
        low, high: 95 % interval of the mean, for other draws and other cases; with one draw, for other cases only.
        draws, cases, pairs: numbers that the mean is based on.
        p: two-sided p value of Wilcoxon's signed-rank test over the cases, each averaged over the draws.
        effect: matched-pairs rank-biserial correlation of the same values, in [-1, 1]; 1: larger in every case.
        p_false_claim: probability that the true difference does not have the sign of ``mean``, in [0, 0.5].

    >>> found = paired_difference(np.array([[0.1, 0.3], [0.2, 0.2]]))
    >>> found.draws, found.cases, found.effect
    (2, 2, 1.0)
    """

    mean: float
    low: float
    high: float
    draws: int
    cases: int
    pairs: int
    p: float
    effect: float
    p_false_claim: float


@dataclass(frozen=True)
class Effect:
    """One contrast under one condition, for one metric and class; most numbers are those of `PairedDifference`.

    Attributes:
        label: a class, or "all classes": the mean of each pair over the classes that both arms have a value for.
        p_holm: ``p`` adjusted over the contrasts of the family under this condition, for this metric and class.
        verdict: "better" or "worse" where the interval excludes 0, there are at least two draws, and
            ``coverage_low`` is at least 0.8; else "not decided".
        coverage_low, coverage_high: how often such intervals contain the truth in simulated experiments of this size.

    >>> dice = {"A": 0.8, "B": 0.7}
    >>> rows = [Score("", 0, arm, case, "x", dice[arm], 1.0, 1.0, 9, 9) for arm in dice for case in ("a", "b")]
    >>> effect = paired_effects(rows, [Contrast("A", "B", "B")])[0]
    >>> effect.verdict, effect.undecided_because[:8]
    ('not decided', 'one draw')
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
    p_false_claim: float
    verdict: str
    coverage_low: float
    coverage_high: float

    @property
    def undecided_because(self) -> str:
        """Why the verdict is "not decided", and what would decide it; "" for another verdict."""
        if self.verdict != "not decided":
            return ""
        if self.draws < LEAST_DRAWS:
            return "one draw of training cases cannot show how much other draws differ: give --draws 3"
        if not self.coverage_low >= LEAST_COVERAGE:
            sample = f"{counted(self.draws, 'draw')} and {counted(self.cases, 'case')}"
            return f"with {sample} the interval is not reliable: add draws or cases"
        return "the interval contains 0"


@dataclass(frozen=True)
class ArmMean:
    """Mean score of one arm under one condition, with its 95 % interval over draws and cases.

    >>> ArmMean("dice", "5 shots", "A", "liver", 0.8, 0.7, 0.9, draws=3, cases=20).mean
    0.8
    """

    metric: str
    condition: str
    arm: str
    label: str
    mean: float
    low: float
    high: float
    draws: int
    cases: int


def paired_difference(
    differences: np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> PairedDifference:
    """Statistics of a matrix of differences (draws, cases); nan where a pair is missing.

    Args:
        bounds: range of a difference, [-1, 1] for Dice; the interval does not leave it.

    >>> paired_difference(np.array([[0.1, 0.3, 0.2], [0.2, 0.2, 0.2]]), bounds=(-1, 1)).pairs
    6
    """
    d = drop_empty(differences)
    if not d.size:
        nan = float("nan")
        return PairedDifference(nan, nan, nan, 0, 0, 0, p=nan, effect=nan, p_false_claim=nan)
    low, high = crossed_interval(d, seed, resamples, bounds)
    per_case = np.nanmean(d, axis=0)
    return PairedDifference(
        mean=float(np.nanmean(d)),
        low=low,
        high=high,
        draws=d.shape[0],
        cases=d.shape[1],
        pairs=int(np.isfinite(d).sum()),
        p=signed_rank(per_case),
        effect=rank_biserial(per_case),
        p_false_claim=false_claim_probability(d),
    )


def paired_effects(scores: Sequence[Score], contrasts: Sequence[Contrast], seed: int = 0) -> list[Effect]:
    """Every contrast under every condition, for every metric and class; contrasts without a common pair are left out.

    >>> rows = [
    ...     Score("5 shots", draw, arm, f"case{i}", "liver", dice + 0.01 * i, dice, 1.0, 9, 9)
    ...     for draw in range(3) for arm, dice in (("A", 0.8), ("B", 0.7)) for i in range(8)
    ... ]
    >>> effect = paired_effects(rows, [Contrast("A", "B", "B")])[0]
    >>> effect.label, round(effect.mean, 3), effect.verdict
    ('all classes', 0.1, 'better')
    """
    table = ScoreTable(scores)
    effects: list[Effect] = []
    for metric in table.metrics():
        for condition in table.conditions:
            effects += _adjusted([e for c in contrasts for e in _effects(table, metric, condition, c, seed)])
    return effects


def _effects(table: ScoreTable, metric: Metric, condition: str, contrast: Contrast, seed: int) -> Iterator[Effect]:
    ours, theirs = (table.matrices(metric.name, condition, arm) for arm in (contrast.arm, contrast.reference))
    differences = ours - theirs
    for label, d in ((OVERALL, nanmean(differences, 0)), *zip(table.labels, differences, strict=True)):
        found = paired_difference(d, seed, bounds=metric.difference_bounds)
        if not found.pairs:
            continue
        coverage_low, coverage_high = simulated_coverage(found.draws, found.cases) if found.cases > 1 else [np.nan] * 2
        yield Effect(
            metric=metric.name,
            condition=condition,
            family=contrast.family,
            arm=contrast.arm,
            reference=contrast.reference,
            label=label,
            p_holm=np.nan,
            verdict=_verdict(found, metric, coverage_low),
            coverage_low=coverage_low,
            coverage_high=coverage_high,
            **vars(found),
        )


def _verdict(found: PairedDifference, metric: Metric, coverage: float) -> Verdict:
    reliable = found.draws >= LEAST_DRAWS and coverage >= LEAST_COVERAGE
    if not reliable or not (found.low > 0 or found.high < 0):
        return "not decided"
    return "better" if metric.sign * found.mean > 0 else "worse"


def _adjusted(effects: list[Effect]) -> list[Effect]:
    """The effects with Holm's correction over the arms of each family and class."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, e in enumerate(effects):
        groups.setdefault((e.family, e.label), []).append(index)
    adjusted = list(effects)
    for indices in groups.values():
        for index, p in zip(indices, holm([effects[i].p for i in indices]), strict=True):
            adjusted[index] = replace(effects[index], p_holm=p)
    return adjusted


def arm_means(scores: Sequence[Score], seed: int = 0) -> list[ArmMean]:
    """Mean and interval of every arm under every condition, for every metric and class, over the arm's finished draws.

    >>> rows = [Score("5 shots", 0, "A", f"case{i}", "liver", 0.1 * i, 0.1, 1.0, 9, 9) for i in range(4)]
    >>> [(m.label, round(m.mean, 2)) for m in arm_means(rows) if m.metric == "dice"]
    [('all classes', 0.15), ('liver', 0.15)]
    """
    table = ScoreTable(scores)
    return [
        mean
        for metric in table.metrics()
        for condition in table.conditions
        for arm in table.arms
        for mean in _means(table, metric, condition, arm, seed)
    ]


def _means(table: ScoreTable, metric: Metric, condition: str, arm: str, seed: int) -> Iterator[ArmMean]:
    matrices = table.matrices(metric.name, condition, arm)
    for label, values in ((OVERALL, nanmean(matrices, 0)), *zip(table.labels, matrices, strict=True)):
        values = drop_empty(values)
        if values.size:
            low, high = crossed_interval(values, seed, bounds=metric.bounds)
            yield ArmMean(metric.name, condition, arm, label, float(np.nanmean(values)), low, high, *values.shape)
