"""Which cases are trained on, validated on and tested on: drawn by seed, nested over shots, never overlapping."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from nnunet_invariance.errors import ComparisonError


@dataclass(frozen=True)
class Subset:
    """The cases of one training: ``len(train)`` equals ``shots``; ``train`` and ``val`` share no case."""

    shots: int
    draw: int
    train: tuple[str, ...]
    val: tuple[str, ...]

    @property
    def condition(self) -> str:
        """What the arms are compared under, as in tables."""
        return "1 shot" if self.shots == 1 else f"{self.shots} shots"

    @property
    def name(self) -> str:
        """Name of the subset in folders and logs."""
        return f"shots{self.shots}_draw{self.draw}"


def draw_test_cases(labelled: Collection[str], n: int, seed: int, seen: Collection[str] = ()) -> tuple[str, ...]:
    """Draw ``n`` test cases from the labelled cases that no pre-training has seen; the order of the input is ignored.

    Raises:
        ComparisonError: fewer than ``n`` such cases.
    """
    free = sorted(set(labelled) - set(seen))
    if not 1 <= n <= len(free):
        msg = (
            f"{n} test cases were asked for, but {len(free)} of the {len(set(labelled))} labelled cases are free "
            f"(the pre-training has seen the other {len(set(labelled)) - len(free)}). Ask for fewer, or keep test "
            "cases out of pre-training: put them into imagesTs and labelsTs before preprocessing."
        )
        raise ComparisonError(msg)
    return tuple(sorted(random.Random(f"test {seed}").sample(free, n)))


ALL = "all"


def draw_subsets(
    pool: Collection[str], shots: Sequence[int | Literal["all"]], draws: int, n_val: int, seed: int
) -> list[Subset]:
    """Draw the training and validation cases of every draw and number of shots, in the order in which to train them.

    The first number of shots comes first, with all its draws. "all" are the cases that do not validate.

    A draw is one seeded permutation of the pool: its first ``n_val`` cases validate for all numbers of shots, the next
    ``k`` train. The smaller training sets are therefore contained in the larger ones of the same draw.

    Raises:
        ComparisonError: the pool is too small, ``n_val`` or a number of shots is below 1.
    """
    names = sorted(set(pool))
    shots = list(dict.fromkeys(len(names) - n_val if k == ALL else k for k in shots))
    if n_val < 1 or draws < 1 or not shots or min(shots) < 1:
        raise ComparisonError(f"shots {shots}, draws {draws}, validation cases {n_val}: expected at least 1 of each.")
    largest = max(shots)
    if largest + n_val > len(names):
        msg = (
            f"{largest} shots and {n_val} validation cases need {largest + n_val} labelled, preprocessed cases outside "
            f"the test set, found {len(names)}. Ask for fewer shots or fewer test cases, or preprocess more cases."
        )
        raise ComparisonError(msg)
    orders = []
    for draw in range(draws):
        order = names.copy()
        random.Random(f"draw {seed} {draw}").shuffle(order)
        orders.append((tuple(order[:n_val]), order[n_val:]))
    return [Subset(k, draw, tuple(rest[:k]), val) for k in shots for draw, (val, rest) in enumerate(orders)]


def require_disjoint(test: Collection[str], subsets: Sequence[Subset]) -> None:
    """Refuse a comparison in which a test case is trained on or validates.

    Raises:
        ComparisonError: names the cases.
    """
    for subset in subsets:
        for use, cases in (("training", subset.train), ("validation", subset.val)):
            if shared := sorted(set(cases) & set(test)):
                raise ComparisonError(shared_cases(shared, f"{use} of {subset.name}"))


def shared_cases(shared: Sequence[str], use: str) -> str:
    """The message about test cases that were used for something else."""
    return (
        f"{len(shared)} test case(s) are in the {use}: {', '.join(shared[:5])}. "
        "Choose other test cases, or leave these out of it."
    )
