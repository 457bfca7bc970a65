"""Certainty of a ranking of arms: the probability of rank 1, and the probability that a claim is false."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from nnunet_invariance.evaluation.scoring.metrics import Metric
from nnunet_invariance.evaluation.scoring.scores import Score
from nnunet_invariance.evaluation.statistics.intervals import RESAMPLES, stretched_means, variance_of_mean
from nnunet_invariance.evaluation.statistics.score_table import ScoreTable, nanmean


@dataclass(frozen=True)
class RankedArm:
    """One arm in the ranking under one condition and metric, by the mean over the classes.

    Attributes:
        rank: 1 is the best mean.
        mean: over the pairs (draw, case) that all ranked arms have a value for.
        p_first: bootstrap probability that the arm is the best one (see :func:`rank_one_probabilities`).
        p_false_claim: probability that the claim "this arm is better than the next one in the ranking" is false (see
            :func:`false_claim_probability`); nan for the last arm. On rank 1 this is the P(false claim) of the paper.
        draws, cases: numbers that the ranking is based on.

    >>> RankedArm("dice", "5 shots", 1, "A", 0.8, p_first=0.9, p_false_claim=0.1, draws=3, cases=20).rank
    1
    """

    metric: str
    condition: str
    rank: int
    arm: str
    mean: float
    p_first: float
    p_false_claim: float
    draws: int
    cases: int


def false_claim_probability(d: np.ndarray) -> float:
    """Posterior probability that the true mean of ``d`` does not have the sign of the observed mean.

    P(false claim) after arXiv 2505.04720: with a flat prior, the true mean difference given the data has Student's
    distribution around the observed mean m with variance V, so that P = T_df(-|m| / sqrt(V)). The paper estimates V
    from reported results; here V and df are those of the crossed design of draws and cases
    (:func:`~nnunet_invariance.evaluation.statistics.intervals.variance_of_mean`). With one draw this is the one-sided
    p value of the paired t-test over the cases, and it says nothing about other draws.

    Args:
        d: differences of the claimed better arm and the other one (draws, cases); nan where a pair is missing.

    Returns:
        A value in [0, 0.5]; nan with fewer than two cases.

    >>> round(false_claim_probability(np.array([[0.01, 0.02, 0.03, 0.02]])), 4)
    0.0081
    """
    if d.shape[1] < 2:
        return np.nan
    mean = abs(float(np.nanmean(d)))
    variance, freedom = variance_of_mean(d)
    if variance == 0:
        return 0.0 if mean else 0.5
    return float(special.stdtr(freedom, -mean / np.sqrt(variance)))


def rank_one_probabilities(scores: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Bootstrap probability of every arm to have the largest mean.

    All arms are resampled together (the same draws and the same cases), and each arm's difference from the mean of all
    arms is widened as for an interval (:func:`~nnunet_invariance.evaluation.statistics.intervals.stretched_means`).
    Two arms therefore get a probability above 0.975 if, and only if, the 95 % interval of their difference excludes 0.
    Arms that tie in a resample share it equally.

    Args:
        scores: (arms, draws, cases) without missing values; larger is better.

    Returns:
        (arms,), with the sum 1.

    >>> rank_one_probabilities(np.array([[[0.9, 0.8, 0.7]], [[0.5, 0.4, 0.2]]]))
    array([1., 0.])
    """
    centred = scores - scores.mean(0)
    means = np.stack([stretched_means(arm, seed, resamples) for arm in centred])
    best = np.isclose(means, means.max(0), rtol=0, atol=1e-12)
    return (best / best.sum(0)).mean(1)


def rank_arms(scores: Sequence[Score], seed: int = 0) -> list[RankedArm]:
    """Rank the arms by their mean over the classes, under every condition and for every metric.

    Only pairs (draw, case) that all arms of a condition have a value for are used; an arm without any value under a
    condition is not ranked there. Conditions with fewer than two arms, pairs or cases have no ranking.
    """
    table = ScoreTable(scores)
    return [row for metric in table.metrics() for c in table.conditions for row in _rank(table, metric, c, seed)]


def _rank(table: ScoreTable, metric: Metric, condition: str, seed: int) -> list[RankedArm]:
    found = {arm: table.matrices(metric.name, condition, arm) for arm in table.arms}
    found = {arm: values for arm, values in found.items() if np.isfinite(values).any()}
    if len(found) < 2:
        return []
    per_class = np.stack(list(found.values()))
    # A mean over other classes would be another quantity, so every arm is averaged over the same ones.
    common = np.where(np.isfinite(per_class).all(0), per_class, np.nan)
    values = _common_pairs(nanmean(common, 1))
    if values.shape[1] < 1 or values.shape[2] < 2:
        return []
    order = np.argsort(-metric.sign * values.mean((1, 2)), kind="stable")
    arms, values = [list(found)[i] for i in order], values[order]
    p_first = rank_one_probabilities(metric.sign * values, seed)
    p_false = [false_claim_probability(a - b) for a, b in itertools.pairwise(values)] + [np.nan]
    return [
        RankedArm(metric.name, condition, i + 1, arm, float(v.mean()), float(first), false, *v.shape)
        for i, (arm, v, first, false) in enumerate(zip(arms, values, p_first, p_false, strict=True))
    ]


def _common_pairs(values: np.ndarray) -> np.ndarray:
    """The largest complete part of (arms, draws, cases): draws and cases without a value for any arm are dropped.

    First the draws that have no common pair, then every case that is not complete in the draws that are left.
    """
    complete = np.isfinite(values).all(0)
    values, complete = values[:, complete.any(1)], complete[complete.any(1)]
    return values[:, :, complete.all(0)]
