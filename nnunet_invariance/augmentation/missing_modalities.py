"""Modalities that a case lacks stay empty through augmentation."""

from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch import Tensor

from nnunet_invariance.networks.presence import over_maps, present_channels


class ZeroMissingChannels(BasicTransform):
    """A pipeline around which channels of missing modalities are noticed before, and set to 0 after.

    Noise and contrast would make an image of a constant, and rotation blurs its border with the padding. What the
    pipeline returns may repeat the image along the channels, as views do, with further channels behind.
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
    """A random subset of the modalities of each sample, never empty where one is available.

    With ``probability``, a sample with n modalities keeps k of them, k uniform in 1 to n - 1; else it keeps all.

    Args:
        available: (B, C) bool, on any device.
        generator: of the CPU.
    """
    samples, channels = available.shape
    draws = torch.rand((samples, channels + 2), generator=generator).to(available.device)
    dropped, size, score = draws[:, :1] < probability, draws[:, 1:2], draws[:, 2:]
    number = available.sum(1, keepdim=True)
    rank = score.masked_fill(~available, -1).argsort(1, descending=True).argsort(1)
    keep = 1 + (size * (number - 1)).long()
    return available & (~dropped | (number < 2) | (rank < keep))
