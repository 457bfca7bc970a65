"""Statistics of scores in data frames: means, rankings and paired differences with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.scoring.metrics import METRICS
from nnunet_invariance.evaluation.scoring.scores import Score
from nnunet_invariance.evaluation.statistics.effects import ArmMean, Contrast, Effect, arm_means, paired_effects
from nnunet_invariance.evaluation.statistics.ranking import RankedArm, rank_arms

#: A data frame, or a mapping from column to values.
Scores: TypeAlias = pd.DataFrame | Mapping[str, Sequence[Any] | np.ndarray]

#: Columns of a frame of scores that may be left out, with the value that they then have in every row.
OPTIONAL_COLUMNS: dict[str, Any] = {"condition": "", "draw": 0, "class": ""}
KEY = ["condition", "draw", "arm", "case", "class"]


def compare(scores: Scores, baseline: str, *, arms: Sequence[str] | None = None, seed: int = 0) -> pd.DataFrame:
    """Compare arms with a baseline: paired differences with 95 % intervals, p values and verdicts.

    Two scores are a pair if they have the same condition, draw, case and class. The statistics are explained in
    docs/evaluation.md.

    Args:
        scores: a data frame or a mapping of columns. Required columns: ``arm``, ``case`` and at least one metric
            (``dice``, ``nsd`` in [0, 1]; ``hd95`` in mm). Optional: ``draw`` (which training set), ``class`` (also
            called ``label``, as in ``scores.csv``), ``condition`` (arms are compared within a condition). Other columns
            are ignored. A missing score is NaN.
        baseline: the arm that all others are compared with.
        arms: the arms that are compared; default: all others. Holm's correction is over these.
        seed: of the bootstrap.

    Returns:
        One row per metric, condition, arm and class ("all classes" is the mean over the classes), with the columns
        ``metric, condition, arm, reference, class, mean, low, high, draws, cases, pairs, p, p_holm, effect,
        p_false_claim, verdict, coverage_low, coverage_high``.

    Raises:
        ComparisonError: a column or the baseline is missing, a row occurs twice, or a score is out of its range.

    >>> scores = {
    ...     "arm": ["A"] * 4 + ["B"] * 4,
    ...     "case": ["c1", "c2", "c3", "c4"] * 2,
    ...     "dice": [0.82, 0.75, 0.91, 0.64, 0.80, 0.70, 0.90, 0.60],
    ... }
    >>> found = compare(scores, baseline="B").iloc[0]
    >>> print(found["arm"], round(found["mean"], 2), found["verdict"])
    A 0.03 not decided
    """
    rows = to_scores(scores)
    found = list(dict.fromkeys(row.arm for row in rows))
    chosen = [arm for arm in found if arm != baseline] if arms is None else list(arms)
    if unknown := [arm for arm in (baseline, *chosen) if arm not in found]:
        msg = f"The scores have no arm {', '.join(map(repr, unknown))}; their arms are {', '.join(found) or 'none'}. "
        raise ComparisonError(f"{msg}Correct the name.")
    effects = paired_effects(rows, [Contrast(arm, baseline, baseline) for arm in chosen], seed)
    return _to_frame(effects, Effect).drop(columns="family")


def mean_scores(scores: Scores, *, seed: int = 0) -> pd.DataFrame:
    """Mean of every arm under every condition, for every metric and class, with its 95 % interval.

    Args:
        scores: as for :func:`compare`.
        seed: of the bootstrap.

    Returns:
        Columns ``metric, condition, arm, class, mean, low, high, draws, cases``. Intervals of Dice and NSD stay
        within [0, 1].

    Raises:
        ComparisonError: as for :func:`compare`.

    >>> table = mean_scores({"arm": ["A", "A", "A"], "case": ["c1", "c2", "c3"], "dice": [0.99, 0.9, 0.2]})
    >>> print(table.loc[0, "class"], table.loc[0, "high"])
    all classes 1.0
    """
    return _to_frame(arm_means(to_scores(scores), seed), ArmMean)


def rank(scores: Scores, *, seed: int = 0) -> pd.DataFrame:
    """Rank the arms by their mean over the classes, with the certainty of the ranking.

    Args:
        scores: as for :func:`compare`.
        seed: of the bootstrap.

    Returns:
        Columns ``metric, condition, rank, arm, mean, p_first, p_false_claim, draws, cases``: the bootstrap probability
        of rank 1, and the probability that the arm is in truth not better than the next one (arXiv 2505.04720).

    Raises:
        ComparisonError: as for :func:`compare`.

    >>> scores = {"arm": ["A", "A", "B", "B"], "case": ["c1", "c2"] * 2, "dice": [0.8, 0.7, 0.5, 0.4]}
    >>> print(rank(scores)[["rank", "arm", "p_first"]].to_string(index=False))
     rank arm  p_first
        1   A      1.0
        2   B      0.0
    """
    return _to_frame(rank_arms(to_scores(scores), seed), RankedArm)


def to_scores(scores: Scores) -> list[Score]:
    """The rows of a frame of scores, checked.

    Raises:
        ComparisonError: as for :func:`compare`.
    """
    frame = pd.DataFrame(scores)
    if "class" not in frame and "label" in frame:
        frame = frame.rename(columns={"label": "class"})
    metrics = _metrics_of(frame)
    frame = frame.assign(**{name: value for name, value in OPTIONAL_COLUMNS.items() if name not in frame})
    if (repeated := frame.duplicated(KEY)).any():
        found = ", ".join(f"{name} {value!r}" for name, value in frame.loc[repeated, KEY].iloc[0].items())
        raise ComparisonError(f"The scores have more than one row for {found}. Keep one, or add a draw or condition.")
    for name in metrics:
        _check_range(frame[name], name)
    nan = np.full(len(frame), np.nan)
    columns: dict[str, Any] = {name: frame[name].astype(float) if name in metrics else nan for name in METRICS}
    columns |= {name: frame[name].astype(str) for name in ("condition", "arm", "case")}
    columns |= {"label": frame["class"].astype(str), "draw": frame["draw"].astype(int)}
    columns |= dict.fromkeys(("n_ref", "n_pred"), [0] * len(frame))  # unknown, and used by no statistic
    return [Score(*row) for row in zip(*(columns[field.name] for field in fields(Score)), strict=True)]


def _metrics_of(frame: pd.DataFrame) -> list[str]:
    """The metrics that have a column; refuses a frame without a required column."""
    metrics = [name for name in METRICS if name in frame]
    if missing := [name for name in ("arm", "case") if name not in frame] or ([] if metrics else list(METRICS)):
        known = ", ".join(map(str, frame.columns)) or "none"
        raise ComparisonError(
            f"The scores have the columns {known}; missing: {', '.join(missing)}. Give arm, case and at least one of "
            f"{', '.join(METRICS)}."
        )
    return metrics


def _check_range(column: pd.Series, name: str) -> None:
    metric = METRICS[name]
    outside = column[(column < metric.low) | (column > metric.high)]
    if len(outside):
        found = f"{name} is {outside.iloc[0]:g} in row {outside.index[0]}"
        raise ComparisonError(f"{found}; expected a value in [{metric.low:g}, {metric.high:g}]. Correct the score.")


def _to_frame(rows: Sequence[Any], kind: type) -> pd.DataFrame:
    columns = [field.name for field in fields(kind)]
    return pd.DataFrame([asdict(row) for row in rows], columns=columns).rename(columns={"label": "class"})
