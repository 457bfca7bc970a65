"""Crops of volumes, and pairs of crops of the same body part, as pure functions of seed and step."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Dataset

from nnunet_invariance.pretraining.alignment import Alignment
from nnunet_invariance.pretraining.cases import Case, load_volume


def crop(volume, center: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Cut ``size`` voxels around ``center``, shifted to stay inside the volume where it is large enough, else padded.

    Returns the crop (C, *size) with zeros outside, and a mask (1, *size) that is True inside the volume.
    """
    shape = volume.shape[1:]
    low = [
        int(np.clip(round(c) - s // 2, 0, n - s)) if n >= s else -((s - n) // 2)
        for c, s, n in zip(center, size, shape, strict=True)
    ]
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
        samples: crops a step, on this rank.
    """

    def __init__(
        self, cases: Sequence[Case], size: Sequence[int], samples: int, seed: int, steps: int, rank: int = 0
    ) -> None:
        self.cases, self.size = tuple(cases), tuple(size)
        self.samples, self.seed, self.steps, self.rank = samples, seed, steps, rank
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
        drawn = [self.cases[i] for i in rng.integers(len(self.cases), size=self.samples)]
        return self._batch([(case, self._point(case, rng)) for case in drawn])

    def _generator(self, step: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.rank, step))

    @staticmethod
    def _point(case: Case, rng: np.random.Generator) -> np.ndarray:
        body = np.asarray(case.body, dtype=float)
        return rng.uniform(body[:, 0], body[:, 1])

    def _batch(self, places: Sequence[tuple[Case, np.ndarray]]) -> dict:
        images, valid = zip(*(crop(self._open(case), point, self.size) for case, point in places), strict=True)
        return {
            "image": torch.from_numpy(np.stack(images)),
            "valid": torch.from_numpy(np.stack(valid)),
            "keys": [case.name for case, _ in places],
        }


class PairedCrops(RandomCrops):
    """Pairs of crops of the same body part from two volumes: P pairs (Q, K), ordered Q1..QP, K1..KP.

    Args:
        cases: two or more.
        alignment: where the partner's crop is centred.
        pairs: P, on this rank.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        size: Sequence[int],
        alignment: Alignment,
        pairs: int,
        seed: int,
        steps: int,
        rank: int = 0,
    ) -> None:
        super().__init__(cases, size, pairs, seed, steps, rank)
        self.alignment = alignment

    def __getitem__(self, step: int) -> dict:
        """As :class:`RandomCrops` with B = 2P, and ``score`` (P,), how sure each match is."""
        rng = self._generator(step)
        first, second, scores = [], [], []
        for _ in range(self.samples):
            a, b = (self.cases[i] for i in rng.choice(len(self.cases), 2, replace=False))
            point = self._point(a, rng)
            partner, score = self.alignment.match(a, b, point[None])
            first.append((a, point))
            second.append((b, partner[0]))
            scores.append(score[0])
        return {**self._batch(first + second), "score": torch.tensor(scores, dtype=torch.float32)}
