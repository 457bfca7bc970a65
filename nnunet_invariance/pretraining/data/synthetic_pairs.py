"""Two synthetic appearances of random label maps, endless, as pure functions of seed and number."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nnunet_invariance.errors import OptionError
from nnunet_invariance.synthesis.appearance import apply_appearance
from nnunet_invariance.synthesis.engine import Element, SynthesisEngine, SyntheticPairs
from nnunet_invariance.synthesis.ensembles import apply_ensemble
from nnunet_invariance.synthesis.online import (
    Augmentation,
    IntensityChange,
    apply_augmentation,
    sample_augmentation,
    scale_to_percentile,
)
from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.synthesis.randomness import element_generator, sample_distinct, without_autocast

#: The first number of the pairs that no run trains on.
HELD_OUT = 2**48
UNCHANGED = IntensityChange(None, None, None, None, None)


class PairIndexDataset(Dataset):
    """Item ``step`` names the pairs of a step: ``seed`` (), ``number`` (B,) and ``keys``; no number is used twice."""

    def __init__(self, batch_size: int, seed: int, steps: int, rank: int = 0) -> None:
        self.batch_size, self.seed, self.steps, self.rank = batch_size, seed, steps, rank

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict:
        first = (self.rank * self.steps + step) * self.batch_size
        numbers = range(first, first + self.batch_size)
        names = [f"synthetic pair {n} of seed {self.seed}" for n in numbers]
        return {"seed": torch.tensor(self.seed), "number": torch.tensor(numbers), "keys": names}


@dataclasses.dataclass(frozen=True)
class PairParameters:
    """Everything random about one pair: what it is made of, how it is augmented, and where each map is looked at."""

    element: Element
    augmentation: Augmentation | None
    start: tuple[int, ...]  # first voxel of the patch in what is made
    positions: list[Tensor]  # (N,) a map


class SyntheticPairGenerator:
    """Makes pairs of a patch's size on the device that is asked for.

    Args:
        patch_size: voxels.
        volume: least side of what is made, voxels. Shapes scale with it (128 in the paper), so that a small patch is
            better cut out of a larger volume than filled with shapes of a few voxels.
        templates: folder of label maps; procedural shapes when None.
        divisor: every axis of the patch must be a multiple of it.

    Raises:
        OptionError: the patch is no multiple. TemplateError: the folder holds no label map.
    """

    def __init__(self, patch_size: Sequence[int], volume: int, templates: Path | None = None, divisor: int = 1) -> None:
        self.patch_size = tuple(patch_size)
        if any(n % divisor for n in self.patch_size):
            next_one = tuple(-(-n // divisor) * divisor for n in self.patch_size)
            msg = f"patch {self.patch_size}: expected multiples of {divisor}. The next that fits: {next_one}."
            raise OptionError(msg)
        size = tuple(max(volume, n) for n in patch_size)
        self.engine = SynthesisEngine(SynthesisOptions(size=size), templates)

    def draw(self, seed: int, number: int, sizes: Sequence[int], num_positions: int, augment: bool) -> PairParameters:
        """Of maps with ``sizes`` positions, ``num_positions`` different ones are drawn, all where there are fewer."""
        generator = element_generator(seed, number)
        element = self.engine.sample(generator)
        augmentation = sample_augmentation(generator) if augment else None
        room = (n - p + 1 for n, p in zip(self.engine.options.size, self.patch_size, strict=True))
        start = tuple(int(torch.randint(n, (), generator=generator)) for n in room)
        positions = [sample_distinct(n, num_positions, generator) for n in sizes]
        return PairParameters(element, augmentation, start, positions)

    def make(self, drawn: Sequence[PairParameters], device: torch.device) -> SyntheticPairs:
        """Labels and both appearances (B, 1, *patch), in about [0, 1]."""
        self.engine.bank.to(device)
        pair = self.engine.apply([d.element for d in drawn])
        return self._finish(pair, [d.augmentation for d in drawn], [d.start for d in drawn])

    @without_autocast
    def make_clean(self, drawn: Sequence[PairParameters], device: torch.device) -> SyntheticPairs:
        """The same, in the same geometry, before corruption and changes of intensity."""
        self.engine.bank.to(device)
        options = self.engine.options
        labels = apply_ensemble(self.engine.bank, [d.element.ensemble for d in drawn], options)
        views = tuple(
            apply_appearance(labels, [d.element.views[which].appearance for d in drawn], options.texture_weight)
            for which in (0, 1)
        )
        plain = [a and dataclasses.replace(a, changes=(UNCHANGED, UNCHANGED)) for a in (d.augmentation for d in drawn)]
        return self._finish(SyntheticPairs(labels, *views), plain, [d.start for d in drawn])

    def _finish(
        self, pair: SyntheticPairs, augmentations: Sequence[Augmentation | None], starts: Sequence[Sequence[int]]
    ) -> SyntheticPairs:
        if augmentations[0] is None:
            pair = SyntheticPairs(pair.labels, *(scale_to_percentile(view) for view in pair.views))
        else:
            pair = apply_augmentation(pair, augmentations)
        boxes = [
            (slice(None), *(slice(a, a + n) for a, n in zip(start, self.patch_size, strict=True))) for start in starts
        ]

        def cut(volumes: Tensor) -> Tensor:
            return torch.stack([volume[box] for volume, box in zip(volumes, boxes, strict=True)])

        return SyntheticPairs(cut(pair.labels), *(cut(view) for view in pair.views))
