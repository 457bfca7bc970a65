"""nnU-Net trained on random subsets of its channels: the simple answer to missing modalities."""

from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunet_invariance.augmentation.missing_modalities import ZeroMissingChannels, drop_modalities
from nnunet_invariance.networks.presence import over_maps, present_channels
from nnunet_invariance.nnunet.normalization import empty_slots
from nnunet_invariance.plans.options import ChannelDropoutOptions
from nnunet_invariance.trainers.baseline import BaselineTrainer
from nnunet_invariance.trainers.seeding import Stream


class ChannelDropoutTrainer(BaselineTrainer):
    """BaselineTrainer with dropout of channels; the network is nnU-Net's.

    A fraction of the samples (``modality_dropout``) keeps a random non-empty subset of its channels. A channel that is
    dropped, or that the case lacks, gets the value that preprocessing gives an image of zeros, as at prediction.

    >>> ChannelDropoutTrainer.least_channels
    2
    """

    options_class = ChannelDropoutOptions
    options: ChannelDropoutOptions
    least_channels = 2
    accepts_missing_channels = True

    def initialize(self) -> None:
        """As nnU-Net; computes the values of empty channels."""
        super().initialize()
        values = empty_slots(self.plans_manager, self.configuration_manager)
        self.empty = torch.tensor(values, device=self.device)
        self.generator = torch.Generator()

    def adapt_transforms(self, pipeline: BasicTransform) -> BasicTransform:
        """nnU-Net's transforms; channels that a case lacks stay empty."""
        return ZeroMissingChannels(pipeline)

    def on_train_epoch_start(self) -> None:
        """As nnU-Net; seeds the dropout of channels."""
        super().on_train_epoch_start()
        self.seed_generator(self.generator, Stream.CHANNEL_DROPOUT)

    def update(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """nnU-Net's step on the channels that are kept."""
        image = batch["data"].to(self.device, non_blocking=True)
        kept = drop_modalities(present_channels(image), self.options.modality_dropout, self.generator)
        empty = over_maps(self.empty.expand(kept.shape), image)
        return super().update({**batch, "data": torch.where(over_maps(kept, image), image, empty)})
