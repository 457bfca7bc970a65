"""Trainers that the stock nnU-Net commands find by name.

    from nnunet_invariance.trainers import AliceTrainer, PretrainedTrainer

Names with a suffix, such as ``AliceTrainer_scratch_50epochs``, are attributes too. Modules are imported when needed.
"""

import importlib

from nnunet_invariance._discovery import find_trainer
from nnunet_invariance.registry import trainers

#: Base classes for new trainers, by the module that defines them.
BASES = {
    "PretrainedTrainer": "nnunet_invariance.trainers.pretrained",
    "AuxiliaryLossTrainer": "nnunet_invariance.trainers.auxiliary_loss",
    "DenseContrastTrainer": "nnunet_invariance.trainers.dense_contrast",
    "StyleTrainer": "nnunet_invariance.trainers.style",
}

__all__ = [*trainers(), *BASES]


def __getattr__(name: str) -> type:
    """Import a base class or a trainer, also one with a suffix, at its first use."""
    if name in BASES:
        return getattr(importlib.import_module(BASES[name]), name)
    trainer = find_trainer(name)
    if trainer is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return trainer
