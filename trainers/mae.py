"""Fine-tuning of an encoder that was pre-trained as a masked autoencoder (arXiv 2111.06377)."""

from nnunet_invariance.plans.options import MAETrainerOptions
from nnunet_invariance.trainers.base import InvarianceTrainer


class MAETrainer(InvarianceTrainer):
    """nnU-Net with the encoder of ``pretrain mae``, and nothing else: the baseline of every other pre-training."""

    method = "mae"
    dimensions = (3,)
    options_class = MAETrainerOptions
