"""Randomness that depends on a seed, a stream and a position in it, and on nothing else."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform

Augmenter = SingleThreadedAugmenter | MultiThreadedAugmenter | NonDetMultiThreadedAugmenter


def mix(*entropy: int) -> int:
    """One seed in [0, 2^32) out of several numbers; different numbers give unrelated seeds."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def seed_everything(*entropy: int) -> None:
    """Seed Python, NumPy and torch: nnU-Net's networks, loaders and transforms draw from their global generators."""
    seed = mix(*entropy)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def without_timing(transform: BasicTransform) -> None:
    """Make nnU-Net's blur repeatable, wherever it is: by default it times two algorithms and takes the faster one."""
    if isinstance(transform, GaussianBlurTransform):
        transform.benchmark = False
    for several in ("transforms", "list_of_transforms"):  # one after the other, one of them
        for part in getattr(transform, several, []):
            without_timing(part)
    if hasattr(transform, "transform"):
        without_timing(transform.transform)


class SeededBatches:
    """A data loader whose batch ``i`` is a function of ``entropy`` and ``i`` alone.

    Batches are dealt to the workers in turn, so the stream depends neither on the number of workers nor on where a run
    was interrupted.

    Args:
        loader: nnU-Net's data loader.
        entropy: names the stream.
        first: index of the first batch.
        workers: number of processes that share the stream.
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
        torch.set_num_threads(1)  # the ordered augmenter, unlike nnU-Net's usual one, leaves this to the loader

    def __iter__(self) -> "SeededBatches":
        return self

    def __next__(self) -> dict[str, Any]:
        seed_everything(*self.entropy, self.index)
        self.index += self.workers
        return next(self.loader)


def seeded_augmenter(augmenter: Augmenter, entropy: tuple[int, ...], first: int) -> Augmenter:
    """Replace an augmenter that nnU-Net has made by an ordered one over :class:`SeededBatches`, workers as many."""
    if isinstance(augmenter, SingleThreadedAugmenter):
        return SingleThreadedAugmenter(SeededBatches(augmenter.data_loader, entropy, first), None)
    augmenter._finish()
    workers = augmenter.num_processes
    batches = SeededBatches(augmenter.generator, entropy, first, workers)
    return MultiThreadedAugmenter(batches, None, workers, pin_memory=augmenter.pin_memory, wait_time=0.002)
