"""Which point of one volume shows the same body part as a point of another volume."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_invariance.nnunet.cases import Case, body_threshold
from nnunet_invariance.pretraining.data.patients import WHOLE_NAME, patients_of


@dataclass(frozen=True)
class MatchedPair:
    """Two volumes and a point of each that shows the same body part.

    Attributes:
        first: the first volume.
        first_point: (3,) in voxels of the first volume.
        second: the second volume.
        second_point: (3,) in voxels of the second volume.
        score: confidence of the match, in [-1, 1].

    >>> case = Case("case_000", "", (8, 8, 8), ((0, 8),) * 3)
    >>> MatchedPair(case, np.zeros(3), case, np.zeros(3), score=1.0).first.name
    'case_000'
    """

    first: Case
    first_point: np.ndarray
    second: Case
    second_point: np.ndarray
    score: float


def sample_point_in_body(case: Case, rng: np.random.Generator) -> np.ndarray:
    """Sample a point (3,), in voxels, uniformly from the bounding box of the body."""
    body = np.asarray(case.body, dtype=float)
    return rng.uniform(body[:, 0], body[:, 1])


def sample_points_in_body(case: Case, image: np.ndarray, num_points: int, rng: np.random.Generator) -> np.ndarray:
    """Sample points (num_points, 3), in voxels, whose voxels are above Otsu's threshold.

    The function samples 16 times as many points in the bounding box of the body and returns the first bright ones. If
    there are too few of them (the body fills less than a sixteenth of its box), other points of the box complete them.

    Args:
        image: one channel of the volume, of shape ``case.shape``.
    """
    low, high = np.asarray(case.body, dtype=float).T
    points = rng.uniform(low, high, (16 * num_points, len(low)))
    bright = image[tuple(points.astype(int).T)] > body_threshold(image)
    return points[np.argsort(~bright, kind="stable")[:num_points]]


class Alignment(ABC):
    """Matches points of one volume to another. Points are voxel coordinates (n, 3) of the preprocessed volumes.

    Args:
        patients: regular expression whose first group is the patient in a case's name.
    """

    def __init__(self, patients: str = WHOLE_NAME) -> None:
        self.patients = patients

    @abstractmethod
    def match(self, first: Case, second: Case, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The matches (n, 3) in ``second`` of ``points`` (n, 3) of ``first``, and their scores (n,) in [-1, 1]."""

    def sample_pair(self, cases: Sequence[Case], rng: np.random.Generator) -> MatchedPair:
        """Sample volumes of two patients and a point in the body of the first one, and match this point.

        The cases must contain two patients
        (:func:`~nnunet_invariance.pretraining.data.patients.require_two_patients`).
        """
        patients: list[str] = []
        while len(set(patients)) < 2:
            first, second = (cases[i] for i in rng.choice(len(cases), 2, replace=False))
            patients = patients_of((first, second), self.patients)
        point = sample_point_in_body(first, rng)
        match, score = self.match(first, second, point[None])
        return MatchedPair(first, point, second, match[0], float(score[0]))


class BodyCoordinates(Alignment):
    """The match has the same relative position inside the bounding box of the body.

    It needs no training, and is accurate as far as the fields of view agree. It cannot distinguish good matches from
    bad ones, so every score is 1.

    >>> small = Case("small", "", (8, 8, 8), ((0, 8),) * 3)
    >>> large = Case("large", "", (20, 20, 20), ((2, 18),) * 3)
    >>> BodyCoordinates().match(small, large, np.array([[4.0, 0.0, 8.0]]))[0].tolist()
    [[10.0, 2.0, 18.0]]
    """

    def match(self, first: Case, second: Case, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Alignment`."""
        a, b = np.asarray(first.body, dtype=float), np.asarray(second.body, dtype=float)
        relative = (points - a[:, 0]) / (a[:, 1] - a[:, 0])
        return b[:, 0] + relative * (b[:, 1] - b[:, 0]), np.ones(len(points))


class SameVolume(Alignment):
    """The match of a point is the point itself, so both crops of a pair are the same crop.

    >>> case = Case("case_000", "", (8, 8, 8), ((0, 8),) * 3)
    >>> SameVolume().match(case, case, np.array([[1.0, 2.0, 3.0]]))[0].tolist()
    [[1.0, 2.0, 3.0]]
    """

    def match(self, first: Case, second: Case, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same voxel coordinates, whatever the volumes are; see :class:`Alignment`."""
        return points, np.ones(len(points))

    def sample_pair(self, cases: Sequence[Case], rng: np.random.Generator) -> MatchedPair:
        """Sample one volume and use it twice."""
        case = cases[int(rng.integers(len(cases)))]
        point = sample_point_in_body(case, rng)
        return MatchedPair(case, point, case, point, 1.0)


class RandomPoints(Alignment):
    """Baseline: the match is a random point in the other body. Every score is 1, so that no loss excludes these pairs.

    >>> case = Case("case_000", "", (8, 8, 8), ((0, 8),) * 3)
    >>> RandomPoints().match(case, case, np.zeros((2, 3)))[0].shape
    (2, 3)
    """

    def match(self, first: Case, second: Case, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The coordinates of the points seed their matches, so the result can be repeated; see :class:`Alignment`."""
        points = np.ascontiguousarray(points, dtype=float)
        rng = np.random.default_rng(points.view(np.uint64).ravel())
        return np.stack([sample_point_in_body(second, rng) for _ in points]), np.ones(len(points))
