"""Conditions of a ControlNet: one channel per label, and optional channels computed from the image."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_fill_holes
from skimage.filters import threshold_otsu
from torch import Tensor

from nnunet_invariance.augmentation.interventions.base import unit_range
from nnunet_invariance.augmentation.interventions.tissues import find_tissues, tissue_count
from nnunet_invariance.errors import OptionError

EXTRAS = ("body", "clusters", "edges")
#: diffusers treats a condition with as many channels as the latents as latents, and then does not resize it.
LATENT_CHANNELS = 4


def ordered_extras(extras: Sequence[str]) -> tuple[str, ...]:
    """Sort extra conditions into the order of :data:`EXTRAS`.

    Raises:
        OptionError: one is unknown.
    """
    unknown = [extra for extra in extras if extra not in EXTRAS]
    if unknown:
        raise OptionError(f"--conditions {unknown[0]!r} is unknown; expected some of {', '.join(EXTRAS)}.")
    return tuple(extra for extra in EXTRAS if extra in extras)


def condition_channels(classes: int, extras: Sequence[str] = ()) -> int:
    """Number of channels of :func:`make_condition`; never 4, see :data:`LATENT_CHANNELS`."""
    count = classes + sum({"body": 1, "clusters": tissue_count(classes), "edges": 1}[extra] for extra in extras)
    return count + (count == LATENT_CHANNELS)


def make_condition(labels: Tensor, images: Tensor, classes: int, extras: Sequence[str] = ()) -> Tensor:
    """One-hot labels including the background, and the extra channels in the order of :data:`EXTRAS`.

    ``body``: the source image above Otsu's threshold, with holes filled. ``clusters``: one-hot tissues of the source
    image; they also contain the order of its intensities. ``edges``: the norm of its gradient, divided by the maximum.

    Shape: labels (B, R, R) uint8 and images (B, R, R) in [0, 1] to (B, K, R, R) float32 in [0, 1]. An empty channel is
    added where K would be 4.
    """
    parts = [_one_hot(labels, classes)]
    if "body" in extras:
        parts.append(torch.stack([torch.from_numpy(_body(image.numpy())) for image in images])[:, None].float())
    if "clusters" in extras:
        tissues = find_tissues(images[:, None], labels[:, None].long(), classes)[:, 0]
        parts.append(_one_hot(tissues, tissue_count(classes)))
    if "edges" in extras:
        parts.append(unit_range(gradient_norm(images)[:, None]))
    condition = torch.cat(parts, 1)
    missing = condition_channels(classes, extras) - condition.shape[1]
    return F.pad(condition, (0, 0, 0, 0, 0, missing))


def gradient_norm(images: Tensor) -> Tensor:
    """Norm of the central differences, (B, R, R) per pixel."""
    rows, columns = torch.gradient(images, dim=(-2, -1))
    return (rows**2 + columns**2).sqrt()


def _one_hot(indices: Tensor, count: int) -> Tensor:
    return F.one_hot(indices.long(), count).movedim(-1, 1).float()


def _body(image: np.ndarray) -> np.ndarray:
    if np.ptp(image) == 0:
        return np.zeros(image.shape, bool)
    return binary_fill_holes(image > threshold_otsu(image))
