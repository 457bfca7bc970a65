"""Which place of one volume is the same body part as a place of another."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_invariance.nnunet.cases import Case, body_threshold
from nnunet_invariance.pretraining.data.patients import EVERYONE, patients_of


@dataclass(frozen=True)
class Pair:
    """A place of one volume and its match in another; points (3,) in voxels, the score in [-1, 1]."""

    source: Case
    point: np.ndarray
    target: Case
    match: np.ndarray
    score: float


def point_in_body(case: Case, rng: np.random.Generator) -> np.ndarray:
    """A point (3,) drawn uniformly from the bounding box of the body."""
    body = np.asarray(case.body, dtype=float)
    return rng.uniform(body[:, 0], body[:, 1])


def points_in_body(case: Case, image: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` points (count, 3) in voxels that are body themselves, not only in its bounding box.

    Of 16 times as many points in the box, the first ones whose voxel is above Otsu's threshold. Where these are too few
    (a body that fills less than a sixteenth of its box), others of the box follow.

    Args:
        image: one channel of the volume, ``case.shape``.
    """
    low, high = np.asarray(case.body, dtype=float).T
    points = rng.uniform(low, high, (16 * count, len(low)))
    bright = image[tuple(points.astype(int).T)] > body_threshold(image)
    return points[np.argsort(~bright, kind="stable")[:count]]


class Alignment(ABC):
    """Matches points of one volume in another. Points are voxel coordinates (n, 3) of the preprocessed volumes.

    Args:
        patients: pattern whose first group is the patient in a case's name.
    """

    def __init__(self, patients: str = EVERYONE) -> None:
        self.patients = patients

    @abstractmethod
    def match(self, source: Case, target: Case, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The matched points (n, 3) in ``target`` and how sure each is (n,), in [-1, 1]."""

    def draw(self, cases: Sequence[Case], rng: np.random.Generator) -> Pair:
        """Volumes of two patients, a place in the body of the first, and its match in the second.

        There must be two patients (:func:`~nnunet_invariance.pretraining.data.patients.require_two`).
        """
        patients: list[str] = []
        while len(set(patients)) < 2:
            source, target = (cases[i] for i in rng.choice(len(cases), 2, replace=False))
            patients = patients_of((source, target), self.patients)
        point = point_in_body(source, rng)
        match, score = self.match(source, target, point[None])
        return Pair(source, point, target, match[0], float(score[0]))


class BodyCoordinates(Alignment):
    """Same relative position inside the bounding box of the body: no training, right as far as fields of view agree.

    The plain fallback where no anatomical embedding is trained. It cannot tell good matches from bad, so every score
    is 1.
    """

    def match(self, source: Case, target: Case, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Alignment`."""
        a, b = np.asarray(source.body, dtype=float), np.asarray(target.body, dtype=float)
        relative = (points - a[:, 0]) / (a[:, 1] - a[:, 0])
        return b[:, 0] + relative * (b[:, 1] - b[:, 0]), np.ones(len(points))


class SameVolume(Alignment):
    """The partner of a place is the place itself: both crops of a pair are one crop."""

    def match(self, source: Case, target: Case, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same voxel coordinates, in whichever volume; see :class:`Alignment`."""
        return points, np.ones(len(points))

    def draw(self, cases: Sequence[Case], rng: np.random.Generator) -> Pair:
        """One volume, twice."""
        case = cases[rng.integers(len(cases))]
        point = point_in_body(case, rng)
        return Pair(case, point, case, point, 1.0)


class RandomPlaces(Alignment):
    """Any place of the other body: what a matching has to beat. Every score is 1, so that no term leaves these out."""

    def match(self, source: Case, target: Case, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Equal points have equal matches; see :class:`Alignment`."""
        points = np.ascontiguousarray(points, dtype=float)
        rng = np.random.default_rng(points.view(np.uint64).ravel())
        return np.stack([point_in_body(target, rng) for _ in points]), np.ones(len(points))
