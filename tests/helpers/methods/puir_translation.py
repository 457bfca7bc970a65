"""A small modality translation, on the batches of PUIR."""

from nnunet_invariance.pretraining.methods.puir_translation import PUIRTranslation, PUIRTranslationOptions
from tests.helpers.methods import setup
from tests.helpers.methods.puir import batch

SETTINGS = ["prior=4", "queue=8", "initial_weights=none"]
__all__ = ["SETTINGS", "batch", "build"]


def build() -> PUIRTranslation:
    """With few entries of prior and queue."""
    return PUIRTranslation(setup(channels=2), PUIRTranslationOptions(prior=4, queue=6))
