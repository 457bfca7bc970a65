"""nnU-Net's stronger augmentation with a seed and a length."""

from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5

from nnunet_invariance.trainers.baseline import BaselineTrainer


class BaselineTrainerDA5(BaselineTrainer, nnUNetTrainerDA5):
    """nnUNetTrainerDA5 with the options of :class:`BaselineTrainer`.

    >>> issubclass(BaselineTrainerDA5, nnUNetTrainerDA5)
    True

    Raises:
        OptionError, UnknownConfigurationError: as BaselineTrainer.
    """
