"""Pairs of synthetic images of random label maps, as pure functions of a seed and the number of a pair."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.common.index_sums import sum_by_index
from nnunet_invariance.errors import OptionError
from nnunet_invariance.synthesis.appearance import LABELS, apply_appearance
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
from nnunet_invariance.synthesis.randomness import element_generator, noise_seed, without_autocast

#: Training never uses pairs from this number on.
FIRST_HELD_OUT_NUMBER = 2**48
#: Patches in which one label has a larger share of the voxels are sampled again, up to ``CANDIDATES`` times.
LARGEST_SHARE = 0.7
CANDIDATES = 8
#: Steps between two patches of one volume; in between come patches of other volumes.
VOLUMES_IN_TURN = 4
UNCHANGED = IntensityChange(None, None, None, None, None)


class PairIndexDataset(Dataset):
    """Which pairs each step sees: the ``seed`` (), the ``number`` (B,) of each volume, and the ``cut`` (), its patch.

    Each volume gives ``cuts`` patches, one in every :data:`VOLUMES_IN_TURN`-th step. No patch occurs twice, and all
    patches of a batch come from different volumes. ``keys`` are the names of the patches.

    >>> dataset = PairIndexDataset(batch_size=2, seed=0, steps=16, cuts=2)
    >>> [(dataset[step]["number"].tolist(), int(dataset[step]["cut"])) for step in (0, 1, 4, 8)]
    [([0, 1], 0), ([2, 3], 0), ([0, 1], 1), ([8, 9], 0)]
    """

    def __init__(self, batch_size: int, seed: int, steps: int, rank: int = 0, cuts: int = 1) -> None:
        self.batch_size, self.seed, self.steps, self.rank, self.cuts = batch_size, seed, steps, rank, cuts

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        turn, place = divmod(step, self.cuts * VOLUMES_IN_TURN)
        cut, which = divmod(place, VOLUMES_IN_TURN)
        first = (self.rank * self.steps + turn * VOLUMES_IN_TURN + which) * self.batch_size
        numbers = range(first, first + self.batch_size)
        names = [f"patch {cut} of synthetic pair {n} of seed {self.seed}" for n in numbers]
        return {
            "seed": torch.tensor(self.seed),
            "number": torch.tensor(numbers),
            "cut": torch.tensor(cut),
            "keys": names,
        }


@dataclasses.dataclass(frozen=True)
class Cut:
    """Everything random about one patch of a volume.

    Attributes:
        starts: (candidates, 3), first voxel of the patch in the synthetic volume; the first patch in which no label has
            more than :data:`LARGEST_SHARE` of the voxels is used, otherwise the one whose largest share is smallest.
        position_seed: of the positions that are sampled in the feature maps.
    """

    starts: Tensor
    position_seed: int


@dataclasses.dataclass(frozen=True)
class PairParameters:
    """Everything random about one pair of volumes and the patches that are cut out of it.

    Attributes:
        element: label map, appearances and corruptions.
        augmentation: online augmentation, or None.
        cuts: of the patches.
    """

    element: Element
    augmentation: Augmentation | None
    cuts: tuple[Cut, ...]


class SyntheticPairGenerator:
    """Generates pairs of images of a label map, and cuts patches out of them.

    Args:
        patch_size: voxels.
        volume: smallest side of a synthetic volume in voxels. The size of the shapes is proportional to it (128 in the
            paper), so a small patch is better cropped from a larger volume than filled with shapes of a few voxels.
        templates: folder of label maps; default: the shapes that are named.
        shapes: see :class:`.SynthesisOptions`.
        divisor: every side of the patch must be a multiple of it.

    Raises:
        OptionError: a side of the patch is not a multiple of ``divisor``, or both templates and shapes are given.
        TemplateError: the folder contains no label map.

    >>> generator = SyntheticPairGenerator((16, 16, 16), volume=32)
    >>> parameters = [generator.sample(seed=0, number=0, augment=False, cuts=2)]
    >>> volumes = generator.volumes(parameters, torch.device("cpu"))
    >>> volumes.labels.shape, generator.patches(volumes, [p.cuts[1] for p in parameters]).labels.shape
    (torch.Size([1, 1, 32, 32, 32]), torch.Size([1, 1, 16, 16, 16]))
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        volume: int,
        templates: Path | None = None,
        shapes: Literal["procedural", "formula", "mixed"] = "procedural",
        divisor: int = 1,
    ) -> None:
        z, y, x = patch_size
        self.patch_size = (z, y, x)
        if any(n % divisor for n in self.patch_size):
            next_one = tuple(-(-n // divisor) * divisor for n in self.patch_size)
            msg = f"patch {self.patch_size}: expected multiples of {divisor}. The next size that fits is {next_one}."
            raise OptionError(msg)
        size = (max(volume, z), max(volume, y), max(volume, x))
        self.engine = SynthesisEngine(SynthesisOptions(size=size, shapes=shapes), templates)

    def sample(self, seed: int, number: int, augment: bool, cuts: int = 1) -> PairParameters:
        """Sample the parameters of one pair.

        Args:
            seed: of the run.
            number: of the pair.
            augment: whether online augmentation is sampled.
            cuts: number of patches; the first ones do not depend on it.
        """
        generator = element_generator(seed, number)
        element = self.engine.sample(generator)
        augmentation = sample_augmentation(generator) if augment else None
        choices = [n - p + 1 for n, p in zip(self.engine.options.size, self.patch_size, strict=True)]

        def cut() -> Cut:
            starts = torch.stack([torch.randint(n, (CANDIDATES,), generator=generator) for n in choices], 1)
            return Cut(starts, noise_seed(generator))

        return PairParameters(element, augmentation, tuple(cut() for _ in range(cuts)))

    def volumes(self, parameters: Sequence[PairParameters], device: torch.device) -> SyntheticPairs:
        r"""Labels and both images (B, 1, \*size) on the device; intensities are in about [0, 1]."""
        self.engine.bank.to(device)
        pair = self.engine.apply([p.element for p in parameters])
        return _augmented(pair, [p.augmentation for p in parameters])

    @without_autocast
    def clean_volumes(self, parameters: Sequence[PairParameters], device: torch.device) -> SyntheticPairs:
        """As :meth:`volumes`, in the same geometry, but without corruptions and intensity changes."""
        self.engine.bank.to(device)
        options = self.engine.options
        labels = apply_ensemble(self.engine.bank, [p.element.ensemble for p in parameters], options)
        first, second = (
            apply_appearance(labels, [p.element.views[which].appearance for p in parameters], options.texture_weight)
            for which in (0, 1)
        )
        augmentations = (p.augmentation for p in parameters)
        geometry = [a and dataclasses.replace(a, changes=(UNCHANGED, UNCHANGED)) for a in augmentations]
        return _augmented(SyntheticPairs(labels, first, second), geometry)

    def patches(self, volumes: SyntheticPairs, cuts: Sequence[Cut]) -> SyntheticPairs:
        r"""Cut one patch (B, 1, \*patch) out of each volume; the whole volumes if they have the size of a patch."""
        if self.patch_size == self.engine.options.size:
            return volumes
        starts = self._best_starts(volumes.labels, torch.stack([cut.starts for cut in cuts]))
        return SyntheticPairs(*(crop(volume, starts, self.patch_size) for volume in volumes))

    def _best_starts(self, labels: Tensor, starts: Tensor) -> Tensor:
        """The start (B, 3) of each patch, out of the candidates (B, K, 3) on the host; see :class:`Cut`."""
        shares = torch.stack(
            [
                torch.stack([largest_share(volume[self._box(start)]) for start in candidates])
                for volume, candidates in zip(labels, starts.tolist(), strict=True)
            ]
        )
        best = shares.clamp(min=LARGEST_SHARE).argmin(1)  # the first one, if several are equal
        return copy_to(labels.device, starts).gather(1, best[:, None, None].expand(-1, 1, 3))[:, 0]

    def _box(self, start: Sequence[int]) -> tuple[slice, ...]:
        return (slice(None), *(slice(a, a + n) for a, n in zip(start, self.patch_size, strict=True)))


def _augmented(pair: SyntheticPairs, augmentations: Sequence[Augmentation | None]) -> SyntheticPairs:
    used = [augmentation for augmentation in augmentations if augmentation is not None]
    if used:
        return apply_augmentation(pair, used)
    first, second = (scale_to_percentile(view) for view in pair.views)
    return SyntheticPairs(pair.labels, first, second)


def crop(volumes: Tensor, starts: Tensor, size: Sequence[int]) -> Tensor:
    """Cut a box of one size out of each volume; the host does not wait for the starts.

    >>> crop(torch.arange(8).view(1, 1, 2, 2, 2), torch.tensor([[1, 0, 1]]), (1, 2, 1)).flatten()
    tensor([5, 7])

    Args:
        volumes: (B, C, z, y, x).
        starts: (B, 3), the first voxel of each box, on the device of the volumes.
        size: of the boxes, in voxels.
    """
    for axis, length in enumerate(size):
        index = starts[:, axis, None] + torch.arange(length, device=starts.device)
        shape = [len(volumes), 1, *(length if other == axis else 1 for other in range(3))]
        target = [*volumes.shape[: 2 + axis], length, *volumes.shape[3 + axis :]]
        volumes = volumes.gather(2 + axis, index.view(shape).expand(target))
    return volumes


def largest_share(labels: Tensor) -> Tensor:
    """The share of the most frequent label, in (0, 1]; a scalar on the device.

    >>> largest_share(torch.tensor([3, 3, 3, 5]))
    tensor(0.7500)
    """
    index = labels.flatten().long()
    return sum_by_index(index, torch.ones(len(index), device=index.device), LABELS).amax() / len(index)


def balanced_positions(labels: Tensor, count: int, seed: int) -> Tensor:
    r"""``count`` different positions; labels that are frequent enough have about equally many of them.

    Position i is sampled without replacement with a probability in proportion to :math:`1 / n_i`, the frequency of its
    label (the smallest keys :math:`-n_i \log u_i`). CPU and CUDA sample different positions.

    >>> labels = torch.tensor([0] * 1000 + [1] * 1000 + [2] * 10)
    >>> labels[balanced_positions(labels, 30, seed=0)].bincount()
    tensor([17,  6,  7])

    Args:
        labels: (N,) whole numbers from 0 to 255.
        count: number of positions; all if there are fewer.
        seed: of the choice.

    Returns:
        (min(count, N),) indices.
    """
    labels = labels.long()
    generator = torch.Generator(labels.device).manual_seed(seed)
    uniform = torch.rand(len(labels), generator=generator, device=labels.device)
    frequency = sum_by_index(labels, torch.ones_like(uniform), LABELS)[labels]
    return (-uniform.log() * frequency).topk(min(count, len(labels)), largest=False).indices
