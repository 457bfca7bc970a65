"""A small Alice, and a pair of crops per rank."""

import torch
from torch import Tensor

from nnunet_invariance.pretraining.methods.alice import Alice
from tests.helpers import distributed_alice
from tests.helpers.methods import images

SETTINGS = ["head_width=16", "num_prototypes=16"]
PAIRED = None


def build() -> Alice:
    """As in the tests of Alice."""
    return distributed_alice.build()


def batch(rank: int) -> dict[str, Tensor]:
    """One pair."""
    return {**images(rank), "score": torch.tensor([1.0])}
