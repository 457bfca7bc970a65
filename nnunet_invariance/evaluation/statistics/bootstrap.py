"""Paired differences over draws and cases: interval, test, effect size, and how often such an interval is right.

A difference stands in a matrix d[r, c] of draws and cases, both drawn at random and crossed: every draw of training
cases is tested on every test case. Missing pairs are nan.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

LEVEL = 0.95
RESAMPLES = 1000
#: Shares of the variance of one difference that draws, cases and the rest have in the simulated experiments.
MIXTURES = ((0.1, 0.3, 0.6), (0.3, 0.3, 0.4), (0.0, 0.6, 0.4), (0.6, 0.2, 0.2))
EXPERIMENTS = 500


@dataclass(frozen=True)
class PairedDifference:
    """What is known of one paired difference.

    Attributes:
        mean: over all pairs.
        low, high: 95 % interval of the mean over other draws and other cases; with one draw, over other cases only.
        draws, cases, pairs: numbers that it rests on.
        p: Wilcoxon signed-rank test over the cases, each averaged over the draws; two-sided.
        effect: matched-pairs rank-biserial correlation of the same values, in [-1, 1]; 1: better in every case.
    """

    mean: float
    low: float
    high: float
    draws: int
    cases: int
    pairs: int
    p: float
    effect: float


def paired_difference(differences: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> PairedDifference:
    """Everything about a matrix of differences (draws, cases); rows and columns without a number are left out."""
    present = np.isfinite(differences)
    d = differences[present.any(1)][:, present.any(0)]
    if not d.size:
        return PairedDifference(*[np.nan] * 3, 0, 0, 0, np.nan, np.nan)
    low, high = crossed_interval(d, seed, resamples)
    per_case = np.nanmean(d, axis=0)
    numbers = (*d.shape, int(np.isfinite(d).sum()))
    return PairedDifference(float(np.nanmean(d)), low, high, *numbers, signed_rank(per_case), rank_biserial(per_case))


def crossed_interval(d: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % interval of the mean of ``d`` (draws, cases): a crossed bootstrap, stretched to the width it should have.

    Draws and cases are resampled with replacement, each on their own (the pigeonhole bootstrap, arXiv 0712.1111). Its
    quantiles q are then moved away from the mean m to m + s (q - m), s = t / z * sqrt(V / V*), where V* is the
    bootstrap's variance, V the unbiased one (:func:`variance_of_mean`) and t the quantile of Student's distribution
    with that many degrees of freedom. nan with fewer than two cases.
    """
    if d.shape[1] < 2:
        return np.nan, np.nan
    mean = np.nanmean(d)
    variance, freedom = variance_of_mean(d)
    if variance == 0:
        return float(mean), float(mean)
    means = bootstrap_means(d, seed, resamples)
    tail = (1 + LEVEL) / 2
    stretch = special.stdtrit(freedom, tail) / special.ndtri(tail) * np.sqrt(variance / means.var())
    low, high = mean + stretch * (np.quantile(means, [1 - tail, tail]) - mean)
    return float(low), float(high)


def bootstrap_means(d: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means (resamples,) of ``d`` with draws and cases resampled; missing pairs weigh nothing.

    A single draw stays: its spread cannot be seen.
    """
    rows, columns = (_counts(n, seed + axis, resamples) for axis, n in enumerate(d.shape))
    present = np.isfinite(d)
    if present.all():
        return np.einsum("bc,bc->b", rows @ d, columns) / d.size
    sums = np.einsum("bc,bc->b", rows @ np.where(present, d, 0), columns)
    weights = np.einsum("bc,bc->b", rows @ present.astype(float), columns)
    kept = weights > 0
    return sums[kept] / weights[kept]


@functools.lru_cache(maxsize=64)
def _counts(n: int, seed: int, resamples: int) -> np.ndarray:
    """How often each of ``n`` is taken in each of the resamples (resamples, n)."""
    return np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), resamples).astype(float)


def variance_of_mean(d: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of ``d`` (draws R, cases C) under d = m + draw + case + rest, and its degrees of freedom.

    With the mean squares of the two-way layout, V = (MS_draw + MS_case - MS_rest) / (R C), at least what draws or
    cases alone give; Satterthwaite's degrees of freedom. Missing pairs are filled with row + column - mean and taken
    off the rest's degrees of freedom. With one draw, V is that of the mean over cases.
    """
    draws, cases = d.shape
    missing = int((~np.isfinite(d)).sum())
    if missing:
        mean, row, column = np.nanmean(d), np.nanmean(d, 1, keepdims=True), np.nanmean(d, 0, keepdims=True)
        d = np.where(np.isfinite(d), d, row + column - mean)
    mean, row, column = d.mean(), d.mean(1, keepdims=True), d.mean(0, keepdims=True)
    ms_case = draws * ((column - mean) ** 2).sum() / (cases - 1)
    if draws == 1:
        return ms_case / cases, cases - 1
    ms_draw = cases * ((row - mean) ** 2).sum() / (draws - 1)
    freedom_rest = max((draws - 1) * (cases - 1) - missing, 1)
    ms_rest = ((d - row - column + mean) ** 2).sum() / freedom_rest
    total = max(ms_draw + ms_case - ms_rest, ms_draw, ms_case)
    spread = ms_draw**2 / (draws - 1) + ms_case**2 / (cases - 1) + ms_rest**2 / freedom_rest
    freedom = total**2 / spread if spread else cases - 1
    return total / (draws * cases), max(freedom, min(draws, cases) - 1)


def signed_rank(values: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; differences of 0 are left out, and 1 when nothing else is there."""
    values = values[values != 0]
    return float(stats.wilcoxon(values).pvalue) if values.size else 1.0


def rank_biserial(values: np.ndarray) -> float:
    """(W+ - W-) / (W+ + W-) of the signed ranks; 0 when all differences are 0."""
    values = values[values != 0]
    if not values.size:
        return 0.0
    ranks = stats.rankdata(np.abs(values))
    return float((ranks * np.sign(values)).sum() / ranks.sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment: p_(i) -> max over j <= i of min(1, (n - j + 1) p_(j)); nan stays nan and does not count."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p) if np.isfinite(p[i])]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted.tolist()


def simulate_differences(
    draws: int, cases: int, mixture: Sequence[float], experiments: int, seed: int, skewed: bool = False
) -> np.ndarray:
    """Experiments (experiments, draws, cases) of true mean 0 with the given shares of variance; ``skewed``: cases from
    a shifted exponential distribution instead of a normal one."""
    rng = np.random.default_rng([seed, draws, cases])
    of_draw, of_case, rest = np.sqrt(np.asarray(mixture) / np.sum(mixture))
    a = rng.standard_normal((experiments, draws, 1))
    b = rng.exponential(size=(experiments, 1, cases)) - 1 if skewed else rng.standard_normal((experiments, 1, cases))
    return of_draw * a + of_case * b + rest * rng.standard_normal((experiments, draws, cases))


def coverage(experiments: np.ndarray, resamples: int = RESAMPLES) -> float:
    """Share of the experiments whose interval holds 0."""
    intervals = np.array([crossed_interval(d, 0, resamples) for d in experiments])
    return float(((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0)).mean())


@functools.cache
def simulated_coverage(draws: int, cases: int) -> tuple[float, float]:
    """Least and greatest coverage over :data:`MIXTURES` at this number of draws and cases."""
    found = [
        coverage(simulate_differences(draws, cases, mixture, EXPERIMENTS, seed), resamples=400)
        for seed, mixture in enumerate(MIXTURES)
    ]
    return min(found), max(found)
