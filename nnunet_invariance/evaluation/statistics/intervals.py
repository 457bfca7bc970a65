"""Confidence interval of a mean over draws of training cases and test cases.

The values are a matrix d[r, c] of draws (rows) and test cases (columns). Both are random samples, and they are crossed:
the networks of every draw are tested on every test case. Missing pairs are nan.
"""

import functools
import math

import numpy as np
from scipy import special

CONFIDENCE = 0.95
RESAMPLES = 1000


def crossed_interval(
    d: np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float, float]:
    """95 % interval of the mean of ``d``: a crossed bootstrap, widened to the correct width for few draws.

    The interval is the 2.5 % and the 97.5 % quantile of :func:`stretched_means`, clipped to ``bounds``. Clipping does
    not reduce the coverage, because the true mean lies within the bounds.

    Args:
        d: (draws, cases); nan where a pair is missing.
        bounds: range of the true mean.

    Returns:
        The two ends; nan with fewer than two cases.

    >>> low, high = crossed_interval(np.array([[0.1, 0.2, 0.4], [0.2, 0.2, 0.3]]), bounds=(0, 1))
    >>> 0 <= low < 0.233 < high <= 1
    True
    """
    if d.shape[1] < 2:
        return math.nan, math.nan
    tail = (1 + CONFIDENCE) / 2
    low, high = np.clip(np.quantile(stretched_means(d, seed, resamples), [1 - tail, tail]), *bounds)
    return float(low), float(high)


def stretched_means(d: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Bootstrap distribution of the mean of ``d`` (draws, cases), widened to the correct variance; (resamples,).

    Draws and cases are resampled with replacement, independently of each other (pigeonhole bootstrap, arXiv
    0712.1111). The means q of the resamples are then moved away from the mean m to m + s (q - m), where
    s = t / z * sqrt(V / V*): V* is the variance of the resampled means, V the unbiased variance of the mean
    (:func:`variance_of_mean`), and t and z are the 97.5 % quantiles of Student's distribution with the degrees of
    freedom of V and of the normal distribution.
    """
    mean = np.nanmean(d)
    variance, freedom = variance_of_mean(d)
    means = bootstrap_means(d, seed, resamples)
    if variance == 0 or means.var() == 0:
        return np.full(len(means), mean)
    tail = (1 + CONFIDENCE) / 2
    stretch = special.stdtrit(freedom, tail) / special.ndtri(tail) * np.sqrt(variance / means.var())
    return mean + stretch * (means - mean)


def bootstrap_means(d: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means (resamples,) of ``d`` with draws and cases resampled; missing pairs have no weight.

    A single draw is kept as it is: its variance cannot be estimated.
    """
    rows, columns = (_multiplicities(n, seed + axis, resamples) for axis, n in enumerate(d.shape))
    present = np.isfinite(d)
    if present.all():
        return np.einsum("bc,bc->b", rows @ d, columns) / d.size
    sums = np.einsum("bc,bc->b", rows @ np.where(present, d, 0), columns)
    weights = np.einsum("bc,bc->b", rows @ present.astype(float), columns)
    nonempty = weights > 0
    return sums[nonempty] / weights[nonempty]


@functools.lru_cache(maxsize=64)
def _multiplicities(n: int, seed: int, resamples: int) -> np.ndarray:
    """How often each of ``n`` items is sampled in each of the resamples (resamples, n)."""
    return np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), resamples).astype(float)


def variance_of_mean(d: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of ``d`` (draws R, cases C) under d = m + draw + case + rest, and its degrees of freedom.

    With the mean squares of the two-way layout, V = (MS_draw + MS_case - MS_rest) / (R C), at least MS_draw / (R C)
    and MS_case / (R C); degrees of freedom after Satterthwaite. Missing pairs are filled with row mean + column mean -
    mean and subtracted from the degrees of freedom of the rest. With one draw, V is the variance of the mean over
    cases.
    """
    draws, cases = d.shape
    missing = int((~np.isfinite(d)).sum())
    if missing:
        mean, row, column = np.nanmean(d), np.nanmean(d, 1, keepdims=True), np.nanmean(d, 0, keepdims=True)
        d = np.where(np.isfinite(d), d, row + column - mean)
    mean, row, column = d.mean(), d.mean(1, keepdims=True), d.mean(0, keepdims=True)
    ms_case = draws * ((column - mean) ** 2).sum() / (cases - 1)
    if draws == 1:
        return float(ms_case / cases), cases - 1
    ms_draw = cases * ((row - mean) ** 2).sum() / (draws - 1)
    freedom_rest = max((draws - 1) * (cases - 1) - missing, 1)
    ms_rest = ((d - row - column + mean) ** 2).sum() / freedom_rest
    total = max(ms_draw + ms_case - ms_rest, ms_draw, ms_case)
    spread = ms_draw**2 / (draws - 1) + ms_case**2 / (cases - 1) + ms_rest**2 / freedom_rest
    freedom = total**2 / spread if spread else cases - 1
    return float(total / (draws * cases)), float(max(freedom, min(draws, cases) - 1))
