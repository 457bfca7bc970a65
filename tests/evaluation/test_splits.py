"""What a comparison draws: nested training sets, test cases, and what is kept apart."""

import math
from collections import Counter

import pytest

from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.protocols.splits import Subset, draw_subsets, draw_test_cases, require_disjoint

POOL = [f"case_{i:03d}" for i in range(20)]


def test_smaller_training_sets_are_in_the_larger_ones_and_share_their_validation():
    subsets = draw_subsets(POOL, [5, 1, 3], draws=4, n_val=2, seed=0)
    assert [(s.draw, s.shots, len(s.train), len(s.val)) for s in subsets] == [
        (draw, k, k, 2) for k in (5, 1, 3) for draw in range(4)
    ]
    for draw in range(4):
        five, one, three = (set(s.train) for s in subsets if s.draw == draw)
        assert one < three < five
        assert len({s.val for s in subsets if s.draw == draw}) == 1
    assert all(not set(s.train) & set(s.val) for s in subsets)


def test_all_shots_are_the_cases_that_do_not_validate():
    (subset, again) = draw_subsets(POOL, ["all", 18, 3], 1, 2, seed=0)
    assert (subset.shots, subset.condition, again.condition) == (18, "18 shots", "3 shots")
    assert {*subset.train, *subset.val} == set(POOL)
    assert Subset(1, 0, ("a",), ("b",)).condition == "1 shot"


def test_draws_depend_on_the_seed_and_on_nothing_else():
    first = draw_subsets(POOL, [5], 3, 2, seed=0)
    assert first == draw_subsets(POOL[::-1], [5], 3, 2, seed=0)
    assert len({s.train for s in (*first, *draw_subsets(POOL, [5], 3, 2, seed=1))}) == 6


def test_every_case_is_drawn_about_equally_often():
    counts = Counter(case for s in draw_subsets(POOL, [5], 400, 2, seed=0) for case in s.train)
    expected, sd = 400 * 5 / 20, math.sqrt(400 * 5 / 20 * 15 / 20)
    assert set(counts) == set(POOL)
    assert max(abs(counts[case] - expected) for case in POOL) < 5 * sd


def test_test_cases_are_drawn_from_what_no_pretraining_has_seen():
    assert set(draw_test_cases(POOL, 8, 0, seen=POOL[:12])) == set(POOL[12:])
    assert draw_test_cases(POOL, 8, 0) == draw_test_cases(POOL[::-1], 8, 0) != draw_test_cases(POOL, 8, 1)
    with pytest.raises(ComparisonError, match=r"9 test cases.* 8 of the 20 labelled.*seen the other 12.*imagesTs"):
        draw_test_cases(POOL, 9, 0, seen=POOL[:12])


@pytest.mark.parametrize(("shots", "n_val"), [([19], 2), ([1, 20], 1)])
def test_more_shots_than_cases(shots, n_val):
    with pytest.raises(ComparisonError, match=r"need 21 labelled, preprocessed cases.*found 20.*fewer shots"):
        draw_subsets(POOL, shots, 1, n_val, 0)


@pytest.mark.parametrize(("shots", "draws", "n_val"), [([0], 1, 1), ([], 1, 1), ([1], 0, 1), ([1], 1, 0)])
def test_counts_below_one_are_refused(shots, draws, n_val):
    with pytest.raises(ComparisonError, match="at least 1 of each"):
        draw_subsets(POOL, shots, draws, n_val, 0)


@pytest.mark.parametrize(("test", "use"), [("b", "training of"), ("c", "validation of")])
def test_a_test_case_used_for_anything_else_is_refused(test, use):
    subset = Subset(1, 0, ("b",), ("c",))
    require_disjoint(["d"], [subset])
    with pytest.raises(ComparisonError, match=rf"1 test case.*{use}.*: {test}\."):
        require_disjoint([test, "d"], [subset])
