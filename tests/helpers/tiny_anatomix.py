"""The anatomix pre-training method on a small planned network."""

import torch

from nnunet_invariance.pretraining.engine.method import Setup
from nnunet_invariance.pretraining.methods.anatomix import Anatomix, AnatomixPretrainingOptions
from tests.helpers.small_checkpoints import architecture


def make(network="PlainConvUNet", patch=(32, 32, 32), unit_range=True, **options) -> Anatomix:
    """The method on a small planned network of three stages."""
    torch.manual_seed(0)
    planned = architecture(network, classes=1)
    setup = Setup(planned, patch, (1.0, 1.0, 1.0), 2, unit_range, ())
    return Anatomix(
        setup, AnatomixPretrainingOptions(**{"num_positions": 64, "held_out": 1, "volume": 32, **options})
    ).train()
