"""Fine-tuning from any checkpoint that the plans block or the environment names."""

from nnunet_invariance.plans.options import TransferOptions
from nnunet_invariance.registry import ANY_METHOD
from nnunet_invariance.trainers.alice import AliceTrainer


class TransferTrainer(AliceTrainer):
    """The encoder of a named checkpoint, whatever pre-trained it; no auxiliary loss unless ``aux`` asks for Alice's.

    Warm-up, the encoder's own rate and ``frozen_epochs`` are those of every trainer with a pre-trained encoder; deep
    supervision, batch size and normalisation are the plans'.
    """

    options_class = TransferOptions
    options: TransferOptions
    method = ANY_METHOD
    dimensions = (2, 3)
