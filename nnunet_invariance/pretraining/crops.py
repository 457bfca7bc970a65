"""Pairs of crops of the same body part from two volumes, a pure function of seed and step."""

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


class PairedCrops(Dataset):
    """Item ``step`` is the batch of that step: P pairs (Q, K), ordered Q1..QP, K1..KP.

    Every item depends on ``seed``, ``step``, ``rank`` and the data alone, never on what was drawn before: a run can be
    continued at any step, with any number of workers.

    Args:
        cases: volumes; two or more.
        size: crop size in voxels.
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
        self.cases, self.size, self.alignment = tuple(cases), tuple(size), alignment
        self.pairs, self.seed, self.steps, self.rank = pairs, seed, steps, rank
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
        """``image`` (2P, C, *size), ``valid`` (2P, 1, *size) boolean, ``score`` (P,) and ``keys`` (names, 2P)."""
        rng = np.random.default_rng((self.seed, self.rank, step))
        first, second, scores, names = [], [], [], ([], [])
        for _ in range(self.pairs):
            a, b = (self.cases[i] for i in rng.choice(len(self.cases), 2, replace=False))
            body = np.asarray(a.body, dtype=float)
            point = rng.uniform(body[:, 0], body[:, 1])
            partner, score = self.alignment.match(a, b, point[None])
            first.append(crop(self._open(a), point, self.size))
            second.append(crop(self._open(b), partner[0], self.size))
            scores.append(score[0])
            names[0].append(a.name)
            names[1].append(b.name)
        images, valid = zip(*first, *second, strict=True)
        return {
            "image": torch.from_numpy(np.stack(images)),
            "valid": torch.from_numpy(np.stack(valid)),
            "score": torch.tensor(scores),
            "keys": names[0] + names[1],
        }
