"""Decide from the labels and intensities of the training cases which axes may be mirrored."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

#: Two classes lie on opposite sides along an axis only if the distance of their centres is at least this share of the
#: foreground's extent in every case.
LEAST_OFFSET = 0.15
#: Two classes look alike if their mean intensities differ by less than this many standard deviations in all channels.
MOST_DIFFERENCE = 0.5
#: A class with fewer voxels in a case is ignored in that case.
LEAST_VOXELS = 10


class LabelledImage(NamedTuple):
    """A training case: ``image`` (C, *spatial) and integer ``labels`` (*spatial).

    >>> LabelledImage(np.zeros((1, 4, 4)), np.zeros((4, 4), int)).labels.shape
    (4, 4)
    """

    image: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class SidedPair:
    """Two classes that look alike and differ only in their side along an axis.

    >>> SidedPair("left", "right", axis=1, offset=-0.5, difference=0.1, cases=1).axis
    1

    Attributes:
        offset: mean of (centre of ``first`` - centre of ``second``) along the axis, as a share of the foreground's
            extent; it has the same sign in every case.
        difference: mean over cases of the largest difference of mean intensities over the channels, in standard
            deviations.
        cases: number of cases with both classes.
    """

    first: str
    second: str
    axis: int
    offset: float
    difference: float
    cases: int

    def __str__(self) -> str:
        return (
            f"{self.first} and {self.second} look alike ({self.difference:.2f} s.d. apart) and always lie on opposite "
            f"sides along axis {self.axis} (distance {abs(self.offset):.2f} of the foreground's extent, "
            f"{self.cases} case{'' if self.cases == 1 else 's'})"
        )


@dataclass(frozen=True)
class MirroringDecision:
    """The axes that may be mirrored, and for each excluded axis the pairs of classes that exclude it.

    >>> MirroringDecision((0, 1), ()).axes
    (0, 1)
    """

    axes: tuple[int, ...]
    pairs: tuple[SidedPair, ...]


class _Measured(NamedTuple):
    offsets: np.ndarray  # per axis
    difference: float


def decide_mirroring(
    cases: Iterable[LabelledImage], class_names: Mapping[int, str], axes: Sequence[int]
) -> MirroringDecision:
    """Exclude the axes along which mirroring turns one class into another class that looks the same.

    A network that is trained on mirrored patches must distinguish such classes without knowing the side, for example
    the left and the right parotid gland, or the anterior and the posterior hippocampus. An axis is excluded if two
    foreground classes lie on opposite sides along it in every training case and have similar intensities in every
    channel. If nnU-Net trains on regions, the integer labels are used.

    Args:
        cases: the training cases; validation and test cases must not be among them.
        class_names: name of every foreground label.
        axes: the axes that nnU-Net would mirror.

    >>> labels = np.zeros((4, 10), int)
    >>> labels[:, :4], labels[:, 6:] = 1, 2
    >>> image = np.random.default_rng(0).normal(size=(1, 4, 10))
    >>> decide_mirroring([LabelledImage(image, labels)], {1: "left", 2: "right"}, (0, 1)).axes
    (0,)
    """
    found: dict[tuple[int, int], list[_Measured]] = {}
    for case in cases:
        for pair, in_case in _measure(case, sorted(class_names)).items():
            found.setdefault(pair, []).append(in_case)
    pairs = []
    for (first, second), measured in found.items():
        offsets = np.stack([m.offsets for m in measured])
        difference = float(np.mean([m.difference for m in measured]))
        if difference >= MOST_DIFFERENCE:
            continue
        one_side = (np.abs(np.sign(offsets).sum(0)) == len(offsets)) & (np.abs(offsets).min(0) >= LEAST_OFFSET)
        for axis in axes:
            if one_side[axis]:
                names = class_names[first], class_names[second]
                pairs.append(SidedPair(*names, axis, float(offsets[:, axis].mean()), difference, len(measured)))
    excluded = {pair.axis for pair in pairs}
    return MirroringDecision(tuple(axis for axis in axes if axis not in excluded), tuple(pairs))


def _measure(case: LabelledImage, values: Sequence[int]) -> dict[tuple[int, int], _Measured]:
    """Offset of the centres and difference of the intensities of every pair of classes in one case."""
    present = {value: np.argwhere(case.labels == value) for value in values}
    present = {value: voxels for value, voxels in present.items() if len(voxels) >= LEAST_VOXELS}
    if len(present) < 2:
        return {}
    everything = np.concatenate(list(present.values()))
    extent = everything.max(0) + 1 - everything.min(0)
    centres = {value: voxels.mean(0) for value, voxels in present.items()}
    indices = {value: (slice(None), *voxels.T) for value, voxels in present.items()}
    intensities = {value: case.image[index] for value, index in indices.items()}
    result = {}
    for first, second in itertools.combinations(present, 2):
        a, b = intensities[first], intensities[second]
        spread = np.sqrt((a.var(1) + b.var(1)) / 2)
        difference = np.abs(a.mean(1) - b.mean(1)) / np.maximum(spread, 1e-6)
        result[first, second] = _Measured((centres[first] - centres[second]) / extent, float(difference.max()))
    return result
