"""Which place of one volume is the same body part as a place of another."""

from typing import Protocol

import numpy as np

from nnunet_invariance.pretraining.cases import Case


class Alignment(Protocol):
    """Matches points of one volume in another. Points are voxel coordinates (n, 3) of the preprocessed volumes."""

    def match(self, source: Case, target: Case, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The matched points (n, 3) in ``target`` and how sure each is (n,), in [-1, 1]."""
        ...


class BodyCoordinates:
    """Same relative position inside the bounding box of the body: no training, right as far as fields of view agree.

    The plain fallback where no anatomical embedding is trained. It cannot tell good matches from bad, so every score
    is 1.
    """

    def match(self, source: Case, target: Case, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Alignment`."""
        a, b = np.asarray(source.body, dtype=float), np.asarray(target.body, dtype=float)
        relative = (points - a[:, 0]) / (a[:, 1] - a[:, 0])
        return b[:, 0] + relative * (b[:, 1] - b[:, 0]), np.ones(len(points))
