"""The trainer that starts from the encoder of ``pretrain voco``."""

from nnunet_invariance.trainers.pretrained import PretrainedTrainer


class VoCoTrainer(PretrainedTrainer):
    """nnU-Net with the encoder of ``pretrain voco``."""

    method = "voco"
