"""P(false claim) and P(rank 1) against analytic results and simulated experiments with a known truth."""

import math

import numpy as np
import pytest
from scipy import stats

from nnunet_invariance.evaluation.scoring.scores import Score
from nnunet_invariance.evaluation.statistics.coverage import MIXTURES, simulate_differences
from nnunet_invariance.evaluation.statistics.intervals import crossed_interval
from nnunet_invariance.evaluation.statistics.ranking import (
    false_claim_probability,
    rank_arms,
    rank_one_probabilities,
)


def test_false_claim_of_one_draw_is_the_one_sided_paired_t_test():
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.2, 1.0):
        d = rng.normal(shift, 1, (1, 12))
        claimed = "greater" if d.mean() > 0 else "less"
        expected = stats.ttest_1samp(d[0], 0, alternative=claimed).pvalue
        assert false_claim_probability(d) == pytest.approx(expected)
        assert false_claim_probability(-d) == pytest.approx(expected)


@pytest.mark.parametrize("mixture", MIXTURES[:2])
def test_false_claims_are_as_frequent_as_their_probability_says(mixture):
    """Experiments whose truth is sampled from a prior that is flat compared with the noise: the claimed sign is wrong
    in the share of the experiments that P(false claim) predicts, for unlikely and for likely false claims."""
    rng = np.random.default_rng(1)
    noise = simulate_differences(8, 20, mixture, 4000, seed=5)
    truth = rng.uniform(-1.5, 1.5, len(noise))
    experiments = noise + truth[:, None, None]
    predicted = np.array([false_claim_probability(d) for d in experiments])
    false = np.sign(experiments.mean((1, 2))) != np.sign(truth)
    for low, high in ((0.0, 0.05), (0.05, 0.2), (0.2, 0.5)):
        group = (predicted >= low) & (predicted < high)
        assert group.sum() > 100
        error = 3.5 * math.sqrt(predicted[group].mean() / group.sum())
        assert false[group].mean() == pytest.approx(predicted[group].mean(), abs=error)


def test_false_claim_at_its_ends():
    assert false_claim_probability(np.full((2, 3), 0.1)) == pytest.approx(0)
    assert false_claim_probability(np.zeros((2, 3))) == 0.5
    assert math.isnan(false_claim_probability(np.array([[0.1], [0.2]])))
    symmetric = np.array([[0.3, -0.3, 0.1, -0.1]])
    assert false_claim_probability(symmetric) == pytest.approx(0.5)


def test_rank_one_of_two_arms_agrees_with_the_interval_of_their_difference():
    decided = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scores = rng.normal(0.5, 0.1, (2, 3, 10)) + np.array([[[0.0]], [[0.06]]])
        low, _ = crossed_interval(scores[1] - scores[0])
        first = rank_one_probabilities(scores)
        assert first.sum() == pytest.approx(1)
        assert (low > 0) == (first[1] > 0.975) or abs(first[1] - 0.975) < 0.002  # the quantile is interpolated
        decided.append(low > 0)
    assert 5 < sum(decided) < 35


@pytest.mark.integration
def test_rank_one_of_many_cases_is_that_of_the_normal_distribution():
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 1, (1, 400))
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    scores = np.stack([np.zeros((1, 400)), noise + 0.05])  # standard error 1 / 20: one standard error above 0
    assert rank_one_probabilities(scores, resamples=20000)[1] == pytest.approx(stats.norm.cdf(1), abs=0.02)


def test_equal_arms_share_rank_one():
    scores = np.random.default_rng(0).normal(size=(1, 2, 6)).repeat(4, 0)
    assert rank_one_probabilities(scores) == pytest.approx([0.25] * 4)


def rows(values: dict[str, np.ndarray], label: str = "x", **metrics) -> list[Score]:
    return [
        Score("5 shots", draw, arm, f"c{case}", label, float(v), math.nan, 10 * (1 - float(v)), 1, 1)
        for arm, matrix in values.items()
        for (draw, case), v in np.ndenumerate(matrix)
    ]


def test_the_ranking_follows_the_means_also_where_smaller_is_better():
    rng = np.random.default_rng(0)
    values = {arm: rng.normal(mean, 0.01, (3, 8)) for arm, mean in (("low", 0.3), ("high", 0.8), ("mid", 0.5))}
    ranking = rank_arms(rows(values))
    for metric in ("dice", "hd95"):
        found = [r for r in ranking if r.metric == metric]
        assert [(r.rank, r.arm) for r in found] == [(1, "high"), (2, "mid"), (3, "low")]
        assert [r.p_first for r in found] == [1, 0, 0]
        assert found[0].p_false_claim < 0.001
        assert math.isnan(found[-1].p_false_claim)


def test_only_common_pairs_and_classes_are_ranked():
    rng = np.random.default_rng(0)
    values = {arm: rng.normal(0.5, 0.1, (3, 6)) for arm in "ab"}
    whole = rows(values)
    lost = [s for s in whole if not (s.arm == "a" and s.draw == 1) and not (s.arm == "b" and s.case == "c2")]
    kept = [s for s in whole if s.draw != 1 and s.case != "c2"]
    of_one = rows({"a": np.full((3, 6), 0.99)}, label="y")  # a class that b has no score of
    for ranking in (rank_arms(lost), rank_arms(kept), rank_arms([*kept, *of_one])):
        assert {r.arm: round(r.mean, 9) for r in ranking if r.metric == "dice"} == {
            arm: round(float(v[[0, 2]][:, [0, 1, 3, 4, 5]].mean()), 9) for arm, v in values.items()
        }
        assert {(r.draws, r.cases) for r in ranking} == {(2, 5)}


def test_one_arm_or_one_case_or_no_common_draw_has_no_ranking():
    halves = {arm: np.full((2, 4), np.nan) for arm in "ab"}
    halves["a"][0], halves["b"][1] = 0.5, 0.6
    assert rank_arms(rows(halves)) == []
    assert rank_arms(rows({"a": np.ones((2, 3)) / 2})) == []
    assert rank_arms(rows({"a": np.ones((2, 1)) / 2, "b": np.ones((2, 1)) / 3})) == []
