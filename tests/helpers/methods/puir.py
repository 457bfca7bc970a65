"""A small PUIR, and crops of two cases per rank, with two modalities."""

import torch
from torch import Tensor

from nnunet_invariance.pretraining.methods.puir import PUIR, PUIROptions
from tests.helpers.methods import images, setup

SETTINGS = ["prior=4", "queue=8"]


def build() -> PUIR:
    """With few entries of prior and queue."""
    return PUIR(setup(channels=2), PUIROptions(prior=4, queue=6))


def batch(rank: int) -> dict[str, Tensor]:
    """Crops of two cases that no other rank has."""
    return {**images(rank, channels=2), "case": torch.tensor([2 * rank, 2 * rank + 1])}
