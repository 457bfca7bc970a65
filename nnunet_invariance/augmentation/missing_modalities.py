"""Augmentation that keeps missing modalities empty."""

from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch import Tensor

from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.networks.presence import over_maps, present_channels


class ZeroMissingChannels(BasicTransform):
    """A pipeline after which channels that were missing (constant) in its input are set to 0.

    Noise and contrast would turn a constant channel into an image, and rotation blurs its border with the padding. The
    output of the pipeline may repeat the channels of the image, as views do, and append further channels.

    >>> from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    >>> image = torch.stack((torch.zeros(4, 4, 4), torch.rand(4, 4, 4)))
    >>> ZeroMissingChannels(ComposeTransforms([]))(image=image)["image"][0].abs().max()
    tensor(0.)
    """

    def __init__(self, pipeline: BasicTransform) -> None:
        super().__init__()
        self.pipeline = pipeline

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Transform one sample: ``image`` (C, *spatial) float, ``segmentation`` (S, *spatial) integer."""
        present = present_channels(data_dict["image"][None])[0]
        sample = self.pipeline(**data_dict)
        image, channels = sample["image"], len(present)
        repeats = len(image) // channels
        keep = torch.cat((present.repeat(repeats), present.new_ones(len(image) - repeats * channels)))
        return {**sample, "image": torch.where(over_maps(keep, image), image, 0)}


def drop_modalities(available: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Sample a subset of the available modalities of each sample; it is empty only if none is available.

    With ``probability``, a sample with n modalities keeps k of them, k uniform in 1 to n - 1; otherwise it keeps all.

    Args:
        available: (B, C) bool, on any device.
        generator: a CPU generator.
    """
    samples, channels = available.shape
    uniform = copy_to(available.device, torch.rand((samples, channels + 2), generator=generator))
    dropped, size, score = uniform[:, :1] < probability, uniform[:, 1:2], uniform[:, 2:]
    number = available.sum(1, keepdim=True)
    rank = score.masked_fill(~available, -1).argsort(1, descending=True).argsort(1)
    keep = 1 + (size * (number - 1)).long()
    return available & (~dropped | (number < 2) | (rank < keep))
