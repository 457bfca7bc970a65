"""Fine-tuning of a network that was pre-trained with dense contrast."""

from nnunet_invariance.plans.options import EncoderDecoderOptions
from nnunet_invariance.trainers.pretrained import PretrainedTrainer


class DenseTrainer(PretrainedTrainer):
    """nnU-Net with encoder and decoder of ``pretrain dense``, and no auxiliary loss.

    >>> DenseTrainer.options_class().transfer
    'encoder+decoder'
    """

    options_class = EncoderDecoderOptions
    options: EncoderDecoderOptions
    method = "dense"
    automatic_head = "summed"
