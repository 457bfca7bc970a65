"""Which cases are trained on, validated on and tested on: drawn by seed, nested over shots, never overlapping."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nnunet_invariance.errors import ComparisonError


@dataclass(frozen=True)
class Subset:
    """The cases of one training: ``len(train)`` equals ``shots``; ``train`` and ``val`` share no case."""

    shots: int
    draw: int
    train: tuple[str, ...]
    val: tuple[str, ...]

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


def draw_subsets(pool: Collection[str], shots: Sequence[int], draws: int, n_val: int, seed: int) -> list[Subset]:
    """Draw the training and validation cases of every draw and number of shots.

    A draw is one seeded permutation of the pool: its first ``n_val`` cases validate for all numbers of shots, the next
    ``k`` train. The smaller training sets are therefore contained in the larger ones of the same draw.

    Raises:
        ComparisonError: the pool is too small, ``n_val`` or a number of shots is below 1.
    """
    if n_val < 1 or draws < 1 or not shots or min(shots) < 1:
        raise ComparisonError(
            f"shots {list(shots)}, draws {draws}, validation cases {n_val}: expected at least 1 of each."
        )
    largest = max(shots)
    if largest + n_val > len(set(pool)):
        msg = (
            f"{largest} shots and {n_val} validation cases need {largest + n_val} labelled, preprocessed cases outside "
            f"the test set, found {len(set(pool))}. Ask for fewer shots or fewer test cases, or preprocess more cases."
        )
        raise ComparisonError(msg)
    subsets = []
    for draw in range(draws):
        order = sorted(set(pool))
        random.Random(f"draw {seed} {draw}").shuffle(order)
        val, rest = order[:n_val], order[n_val:]
        subsets += [Subset(k, draw, tuple(rest[:k]), tuple(val)) for k in sorted(set(shots))]
    return subsets


def require_disjoint(test: Collection[str], subsets: Sequence[Subset], seen: Collection[str]) -> None:
    """Refuse a comparison in which a test case was used for anything but the test.

    Raises:
        ComparisonError: names the cases.
    """
    uses = {"pre-training": set(seen)}
    for subset in subsets:
        uses[f"training of {subset.name}"] = set(subset.train)
        uses[f"validation of {subset.name}"] = set(subset.val)
    for use, cases in uses.items():
        if shared := sorted(cases & set(test)):
            msg = (
                f"{len(shared)} test case(s) are in the {use}: {', '.join(shared[:5])}. "
                "Choose other test cases, or leave these out of it."
            )
            raise ComparisonError(msg)
