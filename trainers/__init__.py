"""Trainers that the stock nnU-Net commands find by name."""

from nnunet_invariance._discovery import find_trainer


def __getattr__(name: str) -> type:
    """Every trainer, parametric names included, as an attribute: `from nnunet_invariance.trainers import NAME`."""
    trainer = find_trainer(name)
    if trainer is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return trainer
