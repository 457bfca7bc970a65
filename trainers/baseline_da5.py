"""nnU-Net's own stronger augmentation with a seed and a length."""

from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5

from nnunet_invariance.trainers.baseline import BaselineTrainer


class BaselineTrainerDA5(BaselineTrainer, nnUNetTrainerDA5):
    """nnUNetTrainerDA5 plus the options of :class:`BaselineTrainer`, and nothing else.

    Raises:
        OptionError, UnknownConfigurationError: as BaselineTrainer.
    """
