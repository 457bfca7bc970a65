"""Crops of volumes, and pairs of crops of the same body part, as pure functions of seed and step."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Dataset

from nnunet_invariance.nnunet.cases import Case, load_volume
from nnunet_invariance.pretraining.data.alignment import Alignment, point_in_body


def crop_origin(shape: Sequence[int], center: np.ndarray, size: Sequence[int]) -> list[int]:
    """First voxel of a crop of ``size`` around ``center``, shifted to stay inside where the volume is large enough."""
    return [
        int(np.clip(round(c) - s // 2, 0, n - s)) if n >= s else -((s - n) // 2)
        for c, s, n in zip(center, size, shape, strict=True)
    ]


def matched_origins(
    shapes: Sequence[Sequence[int]], points: Sequence[np.ndarray], size: Sequence[int]
) -> tuple[list[int], list[int]]:
    """First voxels of two crops that show matched points at the same place, both in voxels of their own volumes.

    Both are centred on their points and then moved by one offset an axis: the least of those that leave the fewest
    voxels of both outside their volumes.
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


def crop(volume, low: Sequence[int], size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Cut ``size`` voxels from the voxel ``low`` on, which may lie outside.

    Returns the crop (C, *size) with zeros outside, and a mask (1, *size) that is True inside the volume.
    """
    shape = volume.shape[1:]
    inside = tuple(slice(max(0, a), min(n, a + s)) for a, s, n in zip(low, size, shape, strict=True))
    place = tuple(slice(i.start - a, i.stop - a) for i, a in zip(inside, low, strict=True))
    image = np.zeros((volume.shape[0], *size), np.float32)
    valid = np.zeros((1, *size), bool)
    image[(slice(None), *place)] = volume[(slice(None), *inside)]
    valid[(slice(None), *place)] = True
    return image, valid


class RandomCrops(Dataset):
    """Item ``step`` is the batch of that step: crops centred anywhere in the bodies of volumes drawn at random.

    Every item depends on ``seed``, ``step``, ``rank`` and the data alone, never on what was drawn before: a run can be
    continued at any step, with any number of workers.

    Args:
        cases: volumes.
        size: crop size in voxels.
        batch_size: crops per step, on this rank.
    """

    def __init__(
        self, cases: Sequence[Case], size: Sequence[int], batch_size: int, seed: int, steps: int, rank: int = 0
    ) -> None:
        self.cases, self.size = tuple(cases), tuple(size)
        self.batch_size, self.seed, self.steps, self.rank = batch_size, seed, steps, rank
        self._open = lru_cache(maxsize=32)(load_volume)

    def __getstate__(self) -> dict:
        state = dict(self.__dict__)
        del state["_open"]  # open files do not travel to spawned workers
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open = lru_cache(maxsize=32)(load_volume)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict:
        """``image`` (B, C, *size), ``valid`` (B, 1, *size) boolean and ``keys`` (B names)."""
        rng = self._generator(step)
        drawn = [self.cases[i] for i in rng.integers(len(self.cases), size=self.batch_size)]
        return self._batch([(case, crop_origin(case.shape, point_in_body(case, rng), self.size)) for case in drawn])

    def _generator(self, step: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.rank, step))

    def _batch(self, places: Sequence[tuple[Case, Sequence[int]]]) -> dict:
        images, valid = zip(*(crop(self._open(case), low, self.size) for case, low in places), strict=True)
        return {
            "image": torch.from_numpy(np.stack(images)),
            "valid": torch.from_numpy(np.stack(valid)),
            "keys": [case.name for case, _ in places],
        }


class PairedCrops(RandomCrops):
    """Pairs of crops of the same body part from two volumes: P pairs (Q, K), ordered Q1..QP, K1..KP.

    Matched points are at the same voxel of both crops (:func:`matched_origins`).

    Args:
        cases: two or more.
        alignment: what is the same place in both.
        batch_size: P, on this rank.
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

    def __getitem__(self, step: int) -> dict:
        """As :class:`RandomCrops` with B = 2P, and ``score`` (P,), how sure each match is."""
        rng = self._generator(step)
        first, second, scores = [], [], []
        for _ in range(self.batch_size):
            pair = self.alignment.draw(self.cases, rng)
            shapes, points = (pair.source.shape, pair.target.shape), (pair.point, pair.match)
            low, other = matched_origins(shapes, points, self.size)
            first.append((pair.source, low))
            second.append((pair.target, other))
            scores.append(pair.score)
        return {**self._batch(first + second), "score": torch.tensor(scores, dtype=torch.float32)}


class OverlappingCrops(RandomCrops):
    """Two views of each of P volumes, ordered V1..VP, W1..WP; both see one random place in most of them.

    A view shows a box of 0.6 to 1 of the crop, or of the volume where that is smaller: what lies outside is zero and
    not valid, so that the border of the image tells no place from another.

    Args:
        cases: P or more.
        batch_size: P, volumes per step; none occurs twice.
    """

    TOGETHER = 0.8  # share of the volumes whose views have a place in common for sure
    SHOWN = (0.6, 1.0)

    def __getitem__(self, step: int) -> dict:
        """As :class:`RandomCrops` with B = 2P, and ``origin`` (B, 3), each crop's first voxel in its volume."""
        rng = self._generator(step)
        views: list[list[tuple[Case, np.ndarray]]] = [[], []]
        for i in rng.choice(len(self.cases), self.batch_size, replace=False):
            case = self.cases[i]
            point = point_in_body(case, rng)
            other = point if rng.random() < self.TOGETHER else point_in_body(case, rng)
            for view, place in zip(views, (point, other), strict=True):
                view.append((case, self._box(case, place, rng)))
        boxes = views[0] + views[1]
        origins = [crop_origin(case.shape, box.mean(1), self.size) for case, box in boxes]
        batch = self._batch([(case, low) for (case, _), low in zip(boxes, origins, strict=True)])
        for valid, (_, box), origin in zip(batch["valid"], boxes, origins, strict=True):
            low, high = (box.round().astype(int) - np.asarray(origin)[:, None]).clip(0).T
            shown = torch.zeros_like(valid)
            shown[(slice(None), *map(slice, low, high))] = True
            valid &= shown
        batch["image"] = batch["image"] * batch["valid"]
        return {**batch, "origin": torch.tensor(origins, dtype=torch.float32)}

    def _box(self, case: Case, point: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A box (3, 2) in voxels that holds the point and lies in the volume."""
        extent = np.minimum(self.size, case.shape) * rng.uniform(*self.SHOWN, 3)
        low = np.clip(point - extent * rng.uniform(0.1, 0.9, 3), 0, np.asarray(case.shape) - extent)
        return np.stack((low, low + extent), 1)
