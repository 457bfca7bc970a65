"""How often an interval of :mod:`intervals` contains the true mean, in simulated experiments of the same size."""

import functools
from collections.abc import Sequence

import numpy as np

from nnunet_invariance.evaluation.statistics.intervals import RESAMPLES, crossed_interval

#: Shares of the variance of one difference that come from draws, cases and the rest in the simulated experiments.
MIXTURES = ((0.1, 0.3, 0.6), (0.3, 0.3, 0.4), (0.0, 0.6, 0.4), (0.6, 0.2, 0.2))
EXPERIMENTS = 500


def simulate_differences(
    draws: int, cases: int, mixture: Sequence[float], experiments: int, seed: int, skewed: bool = False
) -> np.ndarray:
    """Simulated differences (experiments, draws, cases) with true mean 0 and the given shares of variance.

    Args:
        mixture: shares of the variance that come from draws, cases and the rest.
        skewed: sample the cases from a shifted exponential distribution instead of a normal one.
    """
    rng = np.random.default_rng([seed, draws, cases])
    draw_sd, case_sd, rest_sd = np.sqrt(np.asarray(mixture) / np.sum(mixture))
    a = rng.standard_normal((experiments, draws, 1))
    b = rng.exponential(size=(experiments, 1, cases)) - 1 if skewed else rng.standard_normal((experiments, 1, cases))
    return draw_sd * a + case_sd * b + rest_sd * rng.standard_normal((experiments, draws, cases))


def coverage(experiments: np.ndarray, resamples: int = RESAMPLES) -> float:
    """Share of the experiments (experiments, draws, cases) whose interval contains 0."""
    intervals = np.array([crossed_interval(d, 0, resamples) for d in experiments])
    return float(((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0)).mean())


@functools.cache
def simulated_coverage(draws: int, cases: int) -> tuple[float, float]:
    """Lowest and highest coverage over :data:`MIXTURES` at this number of draws and cases."""
    found = [
        coverage(simulate_differences(draws, cases, mixture, EXPERIMENTS, seed), resamples=400)
        for seed, mixture in enumerate(MIXTURES)
    ]
    return min(found), max(found)
