"""The student's view of an unlabelled patch: another appearance of what the teacher saw, and perhaps a flip."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_invariance.augmentation.device_views import apply_intensity, sample_intensity
from nnunet_invariance.augmentation.interventions import INTERVENTIONS, match_statistics


def view_generator(strong: str, device: torch.device) -> torch.Generator:
    """The generator of :func:`change_appearance`: on the device for noise, on the CPU for small parameters."""
    return torch.Generator(device if strong == "intensity" else "cpu")


def change_appearance(
    image: Tensor, labels: Tensor, strong: str, spacing: Sequence[float], generator: torch.Generator
) -> Tensor:
    """Change the intensities of a batch; its geometry stays, so that labels stay in place.

    Args:
        image: (B, C, *spatial).
        labels: (B, 1, *spatial) of integers, for interventions that treat tissues differently.
        strong: "intensity", or the name of a style intervention.
        spacing: mm per axis.
        generator: see :func:`view_generator`.
    """
    if strong == "intensity":
        return apply_intensity(image, sample_intensity(image.shape, generator))
    intervention = INTERVENTIONS[strong]()
    return match_statistics(intervention(image, labels, generator=generator, spacing=spacing), image)


def choose_flips(axes: Sequence[int], generator: torch.Generator) -> list[int]:
    """A random choice of the spatial axes, each with probability 1/2, as dimensions of a batch (B, C, *spatial).

    >>> choose_flips([], torch.Generator())
    []
    """
    chosen = torch.rand(len(axes), generator=generator, device=generator.device) < 0.5
    return [axis + 2 for axis, flip in zip(axes, chosen.tolist(), strict=True) if flip]
