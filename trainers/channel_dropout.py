"""nnU-Net trained on random subsets of its channels: the plain answer to missing modalities."""

from typing import Any, ClassVar

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunet_invariance.augmentation.missing_modalities import ZeroMissingChannels, drop_modalities
from nnunet_invariance.networks.presence import over_maps, present_channels
from nnunet_invariance.nnunet.normalization import empty_slots
from nnunet_invariance.plans.options import ChannelDropoutOptions
from nnunet_invariance.trainers.baseline import BaselineTrainer
from nnunet_invariance.trainers.seeding import mix

DROPOUT = 4  # the stream of what is dropped, beside those of batches


class ChannelDropoutTrainer(BaselineTrainer):
    """BaselineTrainer with dropout of channels; the network is nnU-Net's own.

    A share of the samples (``modality_dropout``) keeps a random subset of its channels, never none. A channel that is
    dropped, or that the case lacks, holds what preprocessing makes of an image of zeros, as at prediction.
    """

    options_class = ChannelDropoutOptions
    options: ChannelDropoutOptions
    least_channels: ClassVar[int] = 2

    def initialize(self) -> None:
        """As nnU-Net; then the values of empty slots."""
        super().initialize()
        values = empty_slots(self.plans_manager, self.configuration_manager)
        self.empty = torch.tensor(values, device=self.device)
        self.generator = torch.Generator()

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's own; channels that a case lacks stay empty."""
        return ZeroMissingChannels(super().get_training_transforms(*args, **kwargs))

    def on_train_epoch_start(self) -> None:
        """As nnU-Net; draws are new in each epoch and repeat where the run does."""
        super().on_train_epoch_start()
        if self.options.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(mix(self.options.seed, self.local_rank, DROPOUT, self.current_epoch))

    def train_step(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """nnU-Net's step on what is left of the channels."""
        image = batch["data"].to(self.device, non_blocking=True)
        kept = drop_modalities(present_channels(image), self.options.modality_dropout, self.generator)
        empty = over_maps(self.empty.expand(kept.shape), image)
        return super().train_step({**batch, "data": torch.where(over_maps(kept, image), image, empty)})
