"""A small anatomix, and a label map per rank."""

import torch
from torch import Tensor

from nnunet_invariance.pretraining.methods.anatomix import Anatomix
from tests.helpers import tiny_anatomix

SETTINGS = ["held_out=1", "num_positions=64", "volume=32"]
PAIRED = ("image", "clean")


def build() -> Anatomix:
    """As in the tests of anatomix, with one held-out pair."""
    return tiny_anatomix.make(batch_size=1, held_out=1)


def batch(rank: int) -> dict[str, Tensor]:
    """The number of one label map."""
    return {"seed": torch.tensor(0), "number": torch.tensor([rank]), "cut": torch.tensor(0)}
