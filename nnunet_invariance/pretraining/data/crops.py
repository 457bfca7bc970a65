"""Crops of volumes, and pairs of crops of the same body part, as pure functions of seed, rank and step."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from nnunet_invariance.nnunet.cases import Case, CaseVolume, load_volume
from nnunet_invariance.pretraining.data.alignment import Alignment, sample_point_in_body


def crop_origin(shape: Sequence[int], center: np.ndarray, size: Sequence[int]) -> list[int]:
    """First voxel of a crop around ``center``, shifted so that it stays inside where the volume is large enough.

    >>> crop_origin((32, 32, 4), np.array([16.0, 30.0, 2.0]), (8, 8, 8))
    [12, 24, -2]
    """
    return [
        int(np.clip(round(c) - s // 2, 0, n - s)) if n >= s else -((s - n) // 2)
        for c, s, n in zip(center, size, shape, strict=True)
    ]


def matched_origins(
    shapes: Sequence[Sequence[int]], points: Sequence[np.ndarray], size: Sequence[int]
) -> tuple[list[int], list[int]]:
    """First voxels of two crops that show matched points at the same voxel, each in voxels of its own volume.

    Both crops are centred on their points and then moved by one offset per axis: the smallest offset that leaves the
    fewest voxels of both crops outside their volumes.

    >>> matched_origins([(32, 32, 32)] * 2, [np.array([16.0] * 3), np.array([2.0] * 3)], (8, 8, 8))
    ([14, 14, 14], [0, 0, 0])
    """
    origins: tuple[list[int], list[int]] = ([], [])
    for *ends, first, second, s in zip(*shapes, *points, size, strict=True):
        lows = [round(first) - s // 2, round(second) - s // 2]

        def outside(offset: int, lows: list[int] = lows, ends: list[int] = ends, s: int = s) -> tuple[int, int]:
            beyond = ((max(0, -(a + offset)), max(0, a + offset + s - n)) for a, n in zip(lows, ends, strict=True))
            return sum(sum(sides) for sides in beyond), abs(offset)

        corners = [d for a, n in zip(lows, ends, strict=True) for d in (-a, n - s - a)]  # of a convex function
        best = min((0, *corners), key=outside)
        for origin, low in zip(origins, lows, strict=True):
            origin.append(low + best)
    return origins


def crop(volume: np.ndarray | CaseVolume, low: Sequence[int], size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    r"""Cut a crop of ``size`` voxels whose first voxel is ``low``; the crop may extend beyond the volume.

    Returns the crop (C, \*size), with zeros outside of the volume, and a mask (1, \*size) that is True inside it.

    >>> image, valid = crop(np.ones((1, 4, 4, 4), np.float32), (-1, 0, 0), (4, 4, 4))
    >>> image.sum(), valid.sum()
    (np.float32(48.0), np.int64(48))
    """
    shape = volume.shape[1:]
    inside = tuple(slice(max(0, a), min(n, a + s)) for a, s, n in zip(low, size, shape, strict=True))
    read = (slice(None), *inside)
    written = (slice(None), *(slice(i.start - a, i.stop - a) for i, a in zip(inside, low, strict=True)))
    image = np.zeros((volume.shape[0], *size), np.float32)
    valid = np.zeros((1, *size), bool)
    image[written] = volume[read]
    valid[written] = True
    return image, valid


class RandomCrops(Dataset):
    """Item ``step`` is the batch of that step: crops centred anywhere in the bodies of randomly sampled volumes.

    Every item depends only on ``seed``, ``step``, ``rank`` and the data, never on earlier items. Therefore a run can
    be continued at any step, with any number of workers.

    Args:
        cases: volumes.
        size: crop size in voxels.
        batch_size: crops per step and rank.
        seed: of the run.
        steps: number of items.
        rank: of this process.

    >>> case = Case("case_000", "", (32, 32, 32), ((0, 32),) * 3)
    >>> len(RandomCrops([case], (16, 16, 16), batch_size=2, seed=0, steps=10))
    10
    """

    def __init__(
        self, cases: Sequence[Case], size: Sequence[int], batch_size: int, seed: int, steps: int, rank: int = 0
    ) -> None:
        self.cases, self.size = tuple(cases), tuple(size)
        self.batch_size, self.seed, self.steps, self.rank = batch_size, seed, steps, rank
        self._open = lru_cache(maxsize=32)(load_volume)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_open"]  # open files cannot be sent to spawned workers
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open = lru_cache(maxsize=32)(load_volume)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        r"""``image`` (B, C, \*size), ``valid`` (B, 1, \*size) boolean and ``keys``, B names of cases."""
        rng = self._generator(step)
        sampled = [self.cases[i] for i in rng.integers(len(self.cases), size=self.batch_size)]
        return self._batch(
            [(case, crop_origin(case.shape, sample_point_in_body(case, rng), self.size)) for case in sampled]
        )

    def _generator(self, step: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.rank, step))

    def _batch(self, origins: Sequence[tuple[Case, Sequence[int]]]) -> dict[str, Any]:
        images, valid = zip(*(crop(self._open(case), low, self.size) for case, low in origins), strict=True)
        return {
            "image": torch.from_numpy(np.stack(images)),
            "valid": torch.from_numpy(np.stack(valid)),
            "keys": [case.name for case, _ in origins],
        }


class PairedCrops(RandomCrops):
    """Pairs of crops of the same body part from two volumes: P pairs (Q, K), ordered Q1..QP, K1..KP.

    Matched points are at the same voxel of both crops (:func:`matched_origins`).

    Args:
        cases: at least two.
        alignment: decides which points of two volumes correspond.
        batch_size: P, pairs per step and rank.

    The other arguments are those of :class:`RandomCrops`.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        size: Sequence[int],
        alignment: Alignment,
        batch_size: int,
        seed: int,
        steps: int,
        rank: int = 0,
    ) -> None:
        super().__init__(cases, size, batch_size, seed, steps, rank)
        self.alignment = alignment

    def __getitem__(self, step: int) -> dict[str, Any]:
        """As :class:`RandomCrops` with B = 2P, and ``score`` (P,), the confidence of each match."""
        rng = self._generator(step)
        pairs = [self.alignment.sample_pair(self.cases, rng) for _ in range(self.batch_size)]
        first, second = [], []
        for pair in pairs:
            shapes, points = (pair.first.shape, pair.second.shape), (pair.first_point, pair.second_point)
            first_origin, second_origin = matched_origins(shapes, points, self.size)
            first.append((pair.first, first_origin))
            second.append((pair.second, second_origin))
        scores = torch.tensor([pair.score for pair in pairs], dtype=torch.float32)
        return {**self._batch(first + second), "score": scores}


class OverlappingCrops(RandomCrops):
    """Two views of each of P volumes, ordered V1..VP, W1..WP; most pairs of views contain one common random point.

    Along each axis a view shows 0.6 to 1 of the crop, or of the volume if that is smaller. The rest of the crop is zero
    and not valid, so that the border of the image does not reveal the position.

    Args:
        cases: at least P.
        batch_size: P, volumes per step and rank; no volume occurs twice in a step.

    The other arguments are those of :class:`RandomCrops`.
    """

    OVERLAP_PROBABILITY = 0.8  # probability that the views of a volume contain a common point for certain
    FIELD_OF_VIEW = (0.6, 1.0)

    def __getitem__(self, step: int) -> dict[str, Any]:
        """As :class:`RandomCrops` with B = 2P, and ``origin`` (B, 3), each crop's first voxel in its volume."""
        rng = self._generator(step)
        views: list[list[tuple[Case, np.ndarray]]] = [[], []]
        for i in rng.choice(len(self.cases), self.batch_size, replace=False):
            case = self.cases[i]
            point = sample_point_in_body(case, rng)
            other = point if rng.random() < self.OVERLAP_PROBABILITY else sample_point_in_body(case, rng)
            for view, contained in zip(views, (point, other), strict=True):
                view.append((case, self._sample_box(case, contained, rng)))
        boxes = views[0] + views[1]
        origins = [crop_origin(case.shape, box.mean(1), self.size) for case, box in boxes]
        batch = self._batch([(case, low) for (case, _), low in zip(boxes, origins, strict=True)])
        for valid, (_, box), origin in zip(batch["valid"], boxes, origins, strict=True):
            low, high = (box.round().astype(int) - np.asarray(origin)[:, None]).clip(0).T
            field_of_view = torch.zeros_like(valid)
            region = (slice(None), *(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True)))
            field_of_view[region] = True
            valid &= field_of_view
        batch["image"] = batch["image"] * batch["valid"]
        return {**batch, "origin": torch.tensor(origins, dtype=torch.float32)}

    def _sample_box(self, case: Case, point: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sample a box (3, 2), in voxels, that contains the point and lies in the volume."""
        extent = np.minimum(self.size, case.shape) * rng.uniform(*self.FIELD_OF_VIEW, 3)
        low = np.clip(point - extent * rng.uniform(0.1, 0.9, 3), 0, np.asarray(case.shape) - extent)
        return np.stack((low, low + extent), 1)
