"""A small dense contrast, and two crops per rank."""

from torch import Tensor

from nnunet_invariance.pretraining.methods.dense import Dense, DenseOptions
from tests.helpers.methods import images, setup

SETTINGS = ["num_positions=32", "features=8"]


def build() -> Dense:
    """With few positions and features."""
    return Dense(setup(), DenseOptions(num_positions=32, features=8))


def batch(rank: int) -> dict[str, Tensor]:
    """Two crops."""
    return images(rank)
