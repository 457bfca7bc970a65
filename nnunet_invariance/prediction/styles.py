"""Prediction as the mean over an image and several styles of it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunet_invariance.augmentation.interventions import GIN, Domain, match_statistics
from nnunet_invariance.augmentation.interventions.base import coarse_axes
from nnunet_invariance.nnunet.planned_dataset import channel_names_of
from nnunet_invariance.prediction.intensity_shift import describe_intensities

SMALLEST = 1e-7  # of a probability, before its logarithm


class StylePredictor(nnUNetPredictor):
    r"""nnU-Net's predictor, with the mean over the image and ``styles`` GIN styles of it.

    .. math:: p(x) = \frac{1}{N + 1} \Big( f(x) + \sum_{i=1}^N f(g_i(x)) \Big)

    f is the softmax (of regions: the sigmoid) of nnU-Net's own sliding window, and g_i are random networks
    (arXiv 2111.12525), which keep the mean and the standard deviation of the preprocessed image. They are the same for
    every case. The time is N + 1 times that of a prediction without styles.

    Args:
        styles: N; 0 is nnU-Net's prediction.
        seed: seed of the random networks.
        arguments: those of nnU-Net's predictor.

    >>> StylePredictor(styles=4, device=torch.device("cpu"), allow_tqdm=False).styles
    perform_everything_on_device=True is only supported for cuda devices! Setting this to False
    4
    """

    def __init__(self, *, styles: int = 0, seed: int = 0, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.styles = styles
        self.seed = seed
        #: Statistics of every predicted image, in the order of the cases.
        self.intensities: list[np.ndarray] = []

    @torch.inference_mode()
    def predict_logits_from_preprocessed_data(self, data: Tensor) -> Tensor:
        """Logits of the mean probability: (C, Z, Y, X) of a preprocessed image to (K, Z, Y, X), on the CPU."""
        self.intensities.append(describe_intensities(data.numpy()))
        logits = super().predict_logits_from_preprocessed_data(data)
        if not self.styles:
            return logits
        total = self.label_manager.apply_inference_nonlin(logits)
        for styled in self.styled_images(data):
            logits = super().predict_logits_from_preprocessed_data(styled)
            total += self.label_manager.apply_inference_nonlin(logits)
        mean = (total / (self.styles + 1)).clamp(SMALLEST, 1 - SMALLEST)
        return mean.logit() if self.label_manager.has_regions else mean.log()

    def styled_images(self, data: Tensor) -> Iterator[Tensor]:
        """The image in each style; channels of a previous stage, and constant channels, are not changed."""
        channels = len(channel_names_of(self.dataset_json))
        image = data[None, :channels].float()
        coarse = plane_axes(self.configuration_manager.spacing)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.styles):
            styled = random_style(image, coarse, generator)
            yield torch.cat((styled[0].to(data.dtype), data[channels:]))


def random_style(image: Tensor, coarse: Sequence[int], generator: torch.Generator) -> Tensor:
    """A GIN style of images (B, C, *spatial), with the mean and the standard deviation of every channel.

    >>> random_style(torch.rand(1, 1, 8, 8), (), torch.Generator().manual_seed(0)).shape
    torch.Size([1, 1, 8, 8])
    """
    parameters = GIN().sample(Domain(tuple(image.shape), 1, tuple(coarse)), generator)
    return match_statistics(GIN().apply(image, None, parameters), image)


def plane_axes(spacing: list[float]) -> tuple[int, ...]:
    """Axes of a volume along which kernels have size 1: the coarse ones, and the first one of a 2-D configuration.

    >>> plane_axes([1.0, 1.0]), plane_axes([5.0, 1.0, 1.0])
    ((0,), (0,))
    """
    return (0,) if len(spacing) == 2 else coarse_axes(spacing)
