"""Fine-tuning from any checkpoint that the plans block or the environment names."""

from nnunet_invariance.plans.options import TransferOptions
from nnunet_invariance.registry import ANY_METHOD
from nnunet_invariance.trainers.pretrained import PretrainedTrainer


class TransferTrainer(PretrainedTrainer):
    """nnU-Net with the encoder of a named checkpoint of any pre-training method, and no auxiliary loss.

    Deep supervision, batch size and normalisation are those of the plans.

    >>> TransferTrainer.options_class().encoder_lr_factor
    0.1
    """

    options_class = TransferOptions
    options: TransferOptions
    method = ANY_METHOD
    dimensions = (2, 3)
