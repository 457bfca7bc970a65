"""Training, validation and test cases: sampled by seed, nested over the numbers of shots, without overlap."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.protocols.cases import LabelledCase


@dataclass(frozen=True)
class Subset:
    """The cases of one training: ``len(train)`` equals ``shots``; ``train`` and ``val`` share no case.

    Attributes:
        part: number of the part that a cross-validation leaves out; None without cross-validation.
        test: the test cases of this training, those of the part; None: all.

    >>> Subset(1, 0, train=("a",), val=("b",)).condition
    '1 shot'
    """

    shots: int
    draw: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    part: int | None = None
    test: tuple[str, ...] | None = None

    @property
    def condition(self) -> str:
        """Name of the condition under which the arms are compared, as in tables."""
        if self.part is not None:
            return "cross-validation"
        return "1 shot" if self.shots == 1 else f"{self.shots} shots"

    @property
    def name(self) -> str:
        """Name of the subset in folders and logs."""
        return f"shots{self.shots}_draw{self.draw}" if self.part is None else f"draw{self.draw}_part{self.part}"

    def tests(self, case: LabelledCase) -> bool:
        """Whether this training is tested on a case."""
        return self.test is None or case.name in self.test


def draw_test_cases(labelled: Collection[str], n: int, seed: int, seen: Collection[str] = ()) -> tuple[str, ...]:
    """Sample ``n`` test cases from the labelled cases that no pre-training has seen; the order of the input is ignored.

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
    """Sample the training and validation cases of every draw and number of shots, in the order of the trainings.

    The first number of shots comes first, with all its draws. "all" means all cases that are not used for validation.

    A draw is one seeded permutation of the pool: its first ``n_val`` cases are the validation cases for all numbers of
    shots, the next ``k`` are the training cases. The smaller training sets are therefore contained in the larger ones
    of the same draw.

    Raises:
        ComparisonError: the pool is too small, ``n_val`` or a number of shots is below 1.
    """
    names = sorted(set(pool))
    numbers = list(dict.fromkeys(len(names) - n_val if k == ALL else int(k) for k in shots))
    if n_val < 1 or draws < 1 or not numbers or min(numbers) < 1:
        raise ComparisonError(f"shots {numbers}, draws {draws}, validation cases {n_val}: expected at least 1 of each.")
    largest = max(numbers)
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
    return [Subset(k, draw, tuple(rest[:k]), val) for k in numbers for draw, (val, rest) in enumerate(orders)]


def draw_parts(pool: Collection[str], parts: int, draws: int, n_val: int, seed: int) -> list[Subset]:
    """Subsets of a cross-validation: each case is left out, and tested, once a draw.

    A draw is one seeded permutation of the pool, assigned to the parts in turn. Of the cases outside a part the
    first ``n_val`` are validation cases and the rest are training cases.

    Raises:
        ComparisonError: a number is too small, or larger than the pool allows.
    """
    names = sorted(set(pool))
    left = len(names) - -(-len(names) // parts) - n_val if parts > 0 else 0
    if not 2 <= parts <= len(names) or min(n_val, draws, left) < 1:
        msg = f"{counted(parts, 'part')}, {counted(draws, 'draw')} and {counted(n_val, 'validation case')} of "
        msg += f"{counted(len(names), 'case')}: expected at least "
        raise ComparisonError(
            f"{msg}2 parts and 1 of each other, no more parts than cases, and a case left to train on."
        )
    subsets = []
    for draw in range(draws):
        order = names.copy()
        random.Random(f"parts {seed} {draw}").shuffle(order)
        for part in range(parts):
            test = order[part::parts]
            rest = [name for name in order if name not in test]
            subsets.append(Subset(len(rest) - n_val, draw, tuple(rest[n_val:]), tuple(rest[:n_val]), part, tuple(test)))
    return subsets


def require_disjoint(test: Collection[str], subsets: Sequence[Subset]) -> None:
    """Refuse a comparison in which a test case is also a training or validation case.

    Raises:
        ComparisonError: names the cases.
    """
    for subset in subsets:
        for use, cases in (("training", subset.train), ("validation", subset.val)):
            if shared := sorted(set(cases) & set(test)):
                raise ComparisonError(shared_cases(shared, f"{use} of {subset.name}"))


def shared_cases(shared: Sequence[str], use: str) -> str:
    """Error message about test cases that are used for something else as well."""
    return (
        f"{counted(len(shared), 'test case is', 'test cases are')} in the {use}: {', '.join(shared[:5])}. "
        "Choose other test cases, or leave these out of it."
    )
