"""Statistics against loops from the formulae, and intervals against simulated experiments with a known truth."""

import math

import numpy as np
import pytest
from scipy import stats

from nnunet_invariance.evaluation.scoring.scores import Score
from nnunet_invariance.evaluation.statistics.coverage import (
    MIXTURES,
    coverage,
    simulate_differences,
    simulated_coverage,
)
from nnunet_invariance.evaluation.statistics.effects import (
    Contrast,
    arm_means,
    paired_difference,
    paired_effects,
)
from nnunet_invariance.evaluation.statistics.intervals import bootstrap_means, crossed_interval, variance_of_mean
from nnunet_invariance.evaluation.statistics.rank_tests import holm, rank_biserial, signed_rank
from nnunet_invariance.evaluation.statistics.score_table import OVERALL

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("mixture", "skewed"), [*((m, False) for m in MIXTURES), (MIXTURES[0], True), (MIXTURES[2], True)]
)
def test_intervals_hold_the_truth_in_95_percent_of_1000_experiments(mixture, skewed):
    experiments = simulate_differences(10, 30, mixture, 1000, seed=MIXTURES.index(mixture), skewed=skewed)
    assert 0.93 <= coverage(experiments, resamples=500) <= 0.97


@pytest.mark.integration
def test_few_draws_cover_less_than_promised_but_far_more_than_plain_percentiles():
    low, high = simulated_coverage(3, 30)
    assert 0.90 < low < high < 0.98
    experiments = simulate_differences(3, 30, MIXTURES[1], 500, seed=7)
    means = (bootstrap_means(d, 0, 400) for d in experiments)
    plain = np.array([np.quantile(m, [0.025, 0.975]) for m in means])
    assert ((plain[:, 0] <= 0) & (plain[:, 1] >= 0)).mean() < 0.88 < coverage(experiments, 400)


def test_one_draw_says_nothing_of_other_draws_and_the_simulation_shows_it():
    low, high = simulated_coverage(1, 30)
    assert low < 0.4
    assert high > 0.92


def test_variance_of_the_mean_is_unbiased_in_the_crossed_model():
    for draws, cases, mixture in ((4, 9, MIXTURES[1]), (10, 30, MIXTURES[0])):
        experiments = simulate_differences(draws, cases, mixture, 3000, seed=3)
        a, b, e = np.array(mixture) / sum(mixture)
        truth = a / draws + b / cases + e / draws / cases
        assert experiments.mean((1, 2)).var() == pytest.approx(truth, rel=0.1)
        assert np.mean([variance_of_mean(d)[0] for d in experiments]) == pytest.approx(truth, rel=0.1)


def test_variance_of_the_mean_by_loops():
    d = RNG.normal(size=(3, 5)) + RNG.normal(size=(3, 1)) + RNG.normal(size=(1, 5))
    R, C = d.shape
    m = d.mean()
    ms_draw = C * sum((d[r].mean() - m) ** 2 for r in range(R)) / (R - 1)
    ms_case = R * sum((d[:, c].mean() - m) ** 2 for c in range(C)) / (C - 1)
    rest = sum((d[r, c] - d[r].mean() - d[:, c].mean() + m) ** 2 for r in range(R) for c in range(C))
    ms_rest = rest / (R - 1) / (C - 1)
    total = max(ms_draw + ms_case - ms_rest, ms_draw, ms_case)
    freedom = total**2 / (ms_draw**2 / (R - 1) + ms_case**2 / (C - 1) + ms_rest**2 / (R - 1) / (C - 1))
    assert variance_of_mean(d) == pytest.approx((total / R / C, max(freedom, min(R, C) - 1)))


@pytest.mark.integration
def test_a_single_draw_is_a_t_interval_over_the_cases():
    d = RNG.normal(0.3, 1, (1, 2000))
    t = stats.ttest_1samp(d[0], 0).confidence_interval(0.95)
    assert crossed_interval(d, resamples=4000) == pytest.approx(tuple(t), abs=0.01)


def test_bootstrap_means_are_those_of_resampled_matrices():
    d = RNG.normal(size=(3, 4))
    d[1, 2] = np.nan
    found = bootstrap_means(d, 5, 6)
    rows, columns = (
        np.random.default_rng([5 + axis, n]).multinomial(n, np.full(n, 1 / n), 6) for axis, n in enumerate(d.shape)
    )
    slow = [np.nanmean(np.repeat(np.repeat(d, r, 0), c, 1)) for r, c in zip(rows, columns, strict=True)]
    assert found == pytest.approx(slow)


def test_intervals_move_and_scale_with_the_data():
    d = RNG.normal(size=(4, 12))
    low, high = crossed_interval(d)
    assert crossed_interval(d * 3 + 2) == pytest.approx((low * 3 + 2, high * 3 + 2))
    assert crossed_interval(np.full((3, 4), 0.2)) == pytest.approx((0.2, 0.2))
    assert crossed_interval(d) == crossed_interval(d)
    assert all(map(math.isnan, crossed_interval(d[:, :1])))


def test_missing_pairs_are_left_out():
    d = RNG.normal(size=(4, 12))
    wider = np.pad(d, ((0, 1), (0, 1)), constant_values=np.nan)
    assert paired_difference(wider) == paired_difference(d)
    d[2, 3] = np.nan
    found = paired_difference(d)
    assert (found.draws, found.cases, found.pairs) == (4, 12, 47)
    assert found.low < found.mean < found.high
    assert paired_difference(np.full((2, 2), np.nan)).pairs == 0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([0.02, math.nan])[0] == 0.02
    assert math.isnan(holm([0.02, math.nan])[1])


def test_rank_biserial_by_loops_and_at_its_ends():
    values = RNG.normal(0.3, 1, 20)
    pairs = [(values[i] + values[j]) / 2 for i in range(20) for j in range(i, 20)]  # Walsh averages
    positive = sum(p > 0 for p in pairs)
    assert rank_biserial(values) == pytest.approx((2 * positive - len(pairs)) / len(pairs))
    assert rank_biserial(np.abs(values)) == 1
    assert rank_biserial(-np.abs(values)) == -1
    assert rank_biserial(np.zeros(3)) == 0
    assert signed_rank(np.zeros(3)) == 1
    assert signed_rank(np.abs(values)) == pytest.approx(2 / 2**20)


def scores(dice: dict[str, float], draws: int = 3, cases: int = 8) -> list[Score]:
    """Arms with the given gain in Dice, two classes, HD95 that goes with it, and no NSD."""
    rng = np.random.default_rng(1)
    rows = []
    for draw in range(draws):
        for case in range(cases):
            for label, shift in (("x", 0.0), ("y", 0.1)):
                base = 0.5 + shift + rng.normal(0, 0.05)
                rows += [
                    Score(
                        "5 shots", draw, arm, f"c{case}", label, base + gain + rng.normal(0, 0.01), math.nan, hd, 1, 1
                    )
                    for arm, gain in dice.items()
                    for hd in [10 - 50 * gain + rng.normal(0, 0.1)]
                ]
    return rows


def test_better_and_worse_are_said_as_such_also_where_smaller_is_better():
    contrasts = [Contrast("good", "twin", "twins"), Contrast("bad", "twin", "twins")]
    effects = paired_effects(scores({"good": 0.1, "twin": 0.0, "bad": -0.1}), contrasts)
    assert {e.metric for e in effects} == {"dice", "hd95"}  # no NSD was computed
    assert {(e.arm, e.verdict) for e in effects} == {("good", "better"), ("bad", "worse")}
    by_name = {(e.metric, e.arm, e.label): e for e in effects}
    assert {label for _, _, label in by_name} == {OVERALL, "x", "y"}
    assert by_name["dice", "good", OVERALL].mean == pytest.approx(0.1, abs=0.01)
    assert by_name["hd95", "good", OVERALL].mean < 0
    assert by_name["dice", "good", "x"].p_holm == pytest.approx(2 * by_name["dice", "good", "x"].p)


def test_no_difference_is_not_decided():
    (overall, *_) = paired_effects(scores({"a": 0.0, "b": 0.0}), [Contrast("a", "b", "f")])
    assert overall.verdict == "not decided"
    assert overall.p_holm == overall.p > 0.05


def test_only_common_draws_are_compared_and_a_missing_arm_is_left_out():
    rows = [s for s in scores({"a": 0.1, "b": 0.0}) if not (s.arm == "b" and s.draw == 2)]
    effects = paired_effects(rows, [Contrast("a", "b", "f"), Contrast("a", "gone", "f")])
    assert {(e.reference, e.draws) for e in effects} == {("b", 2)}
    assert {(mean.arm, mean.draws) for mean in arm_means(rows)} == {("a", 3), ("b", 2)}
    own = [s.dice for s in rows if s.arm == "a" and s.label == "x"]
    (mean,) = (v for v in arm_means(rows) if (v.arm, v.label, v.metric) == ("a", "x", "dice"))
    assert mean.mean == pytest.approx(np.mean(own))
    assert mean.low < mean.mean < mean.high


def test_intervals_stay_within_the_range_of_the_metric():
    rng = np.random.default_rng(3)
    values = rng.uniform(0.0, 0.9, (1, 3))
    low, high = crossed_interval(values)
    assert low < 0 or high > 1  # three cases decide nothing, so that the interval would leave [0, 1]
    assert crossed_interval(values, bounds=(0, 1)) == (max(low, 0), min(high, 1))
    rows = [
        Score("1 shot", 0, arm, f"c{i}", "x", float(dice), math.nan, float(dice), 1, 1)
        for arm, dices in (("a", [0.0, 1.0, 0.5]), ("b", [1.0, 0.0, 0.4]))
        for i, dice in enumerate(dices)
    ]
    for mean in arm_means(rows):
        assert 0 <= mean.low <= mean.mean <= mean.high
        assert mean.high <= 1 or mean.metric == "hd95"
    for effect in paired_effects(rows, [Contrast("a", "b", "f")]):
        assert effect.metric == "hd95" or (effect.low, effect.high) == (-1, 1)


def test_one_draw_decides_nothing_however_large_the_difference():
    (overall, *_) = paired_effects(scores({"a": 0.3, "b": 0.0}, draws=1, cases=30), [Contrast("a", "b", "f")])
    assert overall.low > 0.2
    assert overall.verdict == "not decided"
    assert "one draw" in overall.undecided_because


def test_an_interval_of_low_simulated_coverage_decides_nothing(monkeypatch):
    monkeypatch.setattr("nnunet_invariance.evaluation.statistics.effects.simulated_coverage", lambda *_: (0.79, 0.95))
    (overall, *_) = paired_effects(scores({"a": 0.3, "b": 0.0}), [Contrast("a", "b", "f")])
    assert (overall.low > 0, overall.verdict) == (True, "not decided")
    assert "not reliable" in overall.undecided_because
    monkeypatch.setattr("nnunet_invariance.evaluation.statistics.effects.simulated_coverage", lambda *_: (0.8, 0.95))
    (overall, *_) = paired_effects(scores({"a": 0.3, "b": 0.0}), [Contrast("a", "b", "f")])
    assert (overall.verdict, overall.undecided_because) == ("better", "")
