"""Fine-tuning of an encoder that was pre-trained as a masked autoencoder (arXiv 2111.06377)."""

from nnunet_invariance.trainers.pretrained import PretrainedTrainer


class MAETrainer(PretrainedTrainer):
    """nnU-Net with the encoder of ``pretrain mae`` and no auxiliary loss: the baseline of every other pre-training.

    >>> MAETrainer.method
    'mae'
    """

    method = "mae"
