"""Fine-tuning of a network that was pre-trained as a masked autoencoder (arXiv 2111.06377)."""

from nnunet_invariance.plans.options import EncoderDecoderOptions
from nnunet_invariance.trainers.pretrained import PretrainedTrainer


class MAETrainer(PretrainedTrainer):
    """nnU-Net with encoder and decoder of ``pretrain mae``, and no auxiliary loss: the baseline of other pre-trainings.

    >>> MAETrainer.method
    'mae'
    """

    options_class = EncoderDecoderOptions
    options: EncoderDecoderOptions
    method = "mae"
    automatic_head = "summed"
