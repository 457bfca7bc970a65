"""Random numbers that depend only on a seed, a stream and the position in the stream."""

import random
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform

Augmenter: TypeAlias = SingleThreadedAugmenter | MultiThreadedAugmenter | NonDetMultiThreadedAugmenter


class Stream(IntEnum):
    """Independent streams of random numbers of one run.

    >>> mix(0, Stream.TRAINING) == mix(0, Stream.VALIDATION)
    False
    """

    TRAINING = 0  # batches
    VALIDATION = 1  # batches
    POSITIONS = 2  # positions of dense contrast, and all other samples of auxiliary losses
    EQUIVARIANCE = 3  # which steps have an additional pass
    CHANNEL_DROPOUT = 4
    UNLABELLED = 5  # batches of unlabelled scans
    STRONG_VIEWS = 6
    AUGMENTATION = 7  # on the device


def mix(*entropy: int) -> int:
    """Derive one seed in [0, 2^32) from several numbers; different numbers give independent seeds.

    >>> mix(1, 2) == mix(2, 1)
    False
    """
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def seed_everything(*entropy: int) -> None:
    """Seed the global generators of Python, NumPy and torch, which nnU-Net's networks, loaders and transforms use."""
    seed = mix(*entropy)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_repeatable(transform: BasicTransform) -> None:
    """Fix the algorithm of nnU-Net's blur in a pipeline; by default it times two algorithms and uses the faster one."""
    if isinstance(transform, GaussianBlurTransform):
        transform.benchmark = False
    for several in ("transforms", "list_of_transforms"):  # a sequence, a random choice
        for part in getattr(transform, several, []):
            make_repeatable(part)
    if hasattr(transform, "transform"):
        make_repeatable(transform.transform)


class SeededBatches:
    """A data loader whose batch ``i`` depends only on ``entropy`` and ``i``.

    Worker w of W makes the batches w, w + W, w + 2 W, and so on, so the stream depends neither on the number of workers
    nor on interruptions of the run.

    Args:
        loader: nnU-Net's data loader.
        entropy: numbers that identify the stream.
        first: index of the first batch.
        workers: number of processes that share the stream.

    >>> batches = SeededBatches(iter(lambda: {"x": random.random()}, None), (0,), first=5)
    >>> again = SeededBatches(iter(lambda: {"x": random.random()}, None), (0,), first=4)
    >>> _ = next(again)
    >>> next(batches) == next(again)
    True
    """

    def __init__(
        self, loader: Iterator[dict[str, Any]], entropy: tuple[int, ...], first: int, workers: int = 1
    ) -> None:
        self.loader = loader
        self.entropy = entropy
        self.first = self.index = first
        self.workers = workers

    def set_thread_id(self, worker: int) -> None:
        """Called by batchgenerators at the start of a worker process."""
        self.index = self.first + worker
        torch.set_num_threads(1)  # unlike nnU-Net's usual augmenter, the ordered one does not set it

    def __iter__(self) -> "SeededBatches":
        return self

    def __next__(self) -> dict[str, Any]:
        seed_everything(*self.entropy, self.index)
        self.index += self.workers
        return next(self.loader)


def loader_of(augmenter: Augmenter) -> Any:
    """The data loader in one of nnU-Net's augmenters."""
    return augmenter.data_loader if isinstance(augmenter, SingleThreadedAugmenter) else augmenter.generator


def seeded_augmenter(augmenter: Augmenter, entropy: tuple[int, ...], first: int) -> Augmenter:
    """Replace nnU-Net's augmenter by one whose batches are seeded, see :func:`make_augmenter`."""
    if not isinstance(augmenter, SingleThreadedAugmenter):
        augmenter._finish()
    return make_augmenter(loader_of(augmenter), augmenter, entropy, first)


def make_augmenter(loader: Any, like: Augmenter, entropy: tuple[int, ...] | None, first: int) -> Augmenter:
    """Build an augmenter with as many workers as another one; a seeded one is ordered, over :class:`SeededBatches`.

    Args:
        loader: nnU-Net's data loader.
        like: the other augmenter.
        entropy: numbers that identify the stream; None leaves it unseeded.
        first: index of the first batch of a seeded stream.
    """
    if isinstance(like, SingleThreadedAugmenter):
        return SingleThreadedAugmenter(loader if entropy is None else SeededBatches(loader, entropy, first), None)
    workers, pin = like.num_processes, like.pin_memory
    if entropy is None:
        return NonDetMultiThreadedAugmenter(loader, None, workers, 2, pin_memory=pin, wait_time=0.002)
    batches = SeededBatches(loader, entropy, first, workers)
    return MultiThreadedAugmenter(batches, None, workers, pin_memory=pin, wait_time=0.002)
