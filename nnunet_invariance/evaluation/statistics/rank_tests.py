"""Wilcoxon's signed-rank test, its effect size, and Holm's correction for several tests."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def signed_rank(values: np.ndarray) -> float:
    """Two-sided p value of Wilcoxon's signed-rank test; values of 0 are left out; 1 when no other value is left.

    >>> signed_rank(np.array([0.1, 0.2, 0.3, 0.4, 0.5]))
    0.0625
    """
    values = values[values != 0]
    return float(stats.wilcoxon(values).pvalue) if values.size else 1.0


def rank_biserial(values: np.ndarray) -> float:
    """Matched-pairs rank-biserial correlation (W+ - W-) / (W+ + W-), in [-1, 1]; 0 when all values are 0.

    >>> rank_biserial(np.array([0.1, 0.2, -0.3]))
    0.0
    """
    values = values[values != 0]
    if not values.size:
        return 0.0
    ranks = stats.rankdata(np.abs(values))
    return float((ranks * np.sign(values)).sum() / ranks.sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment: p_(i) -> max over j <= i of min(1, (n - j + 1) p_(j)); nan stays nan and is not counted.

    >>> holm([0.01, 0.03, 0.5])
    [0.03, 0.06, 0.5]
    """
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p) if np.isfinite(p[i])]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return [float(value) for value in adjusted]
