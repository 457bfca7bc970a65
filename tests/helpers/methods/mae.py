"""A small MAE, and two crops per rank."""

from torch import Tensor

from nnunet_invariance.pretraining.methods.mae import MAE, MAEOptions
from tests.helpers.methods import images, setup

SETTINGS: list[str] = []


def build() -> MAE:
    """With default options."""
    return MAE(setup(), MAEOptions())


def batch(rank: int) -> dict[str, Tensor]:
    """Two crops."""
    return images(rank)
