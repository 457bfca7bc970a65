"""What every intervention keeps to: what it may know before it draws, and how it is applied."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from torch import Tensor

Apply = Callable[[Tensor, Tensor, Any], Tensor]


class Domain(NamedTuple):
    """What a draw depends on.

    Attributes:
        shape: (B, C, *spatial) of the images.
        classes: number of labels; they run from 0 to ``classes`` - 1.
        coarse: spatial axes (0 is the first) along which kernels have size 1.
    """

    shape: tuple[int, ...]
    classes: int
    coarse: tuple[int, ...] = ()

    def kernel(self, size: int) -> tuple[int, ...]:
        """A kernel of this size, 1 along the coarse axes."""
        return tuple(1 if axis in self.coarse else size for axis in range(len(self.shape) - 2))


class Intervention(NamedTuple):
    """A draw, and what it does to images.

    Attributes:
        sample: (:class:`Domain`, generator of the CPU) to a draw.
        apply: images (B, C, *spatial), labels (B, 1, *spatial) int64 and a draw, to new images of the same shape in
            float32, without a gradient. Labels are read, never changed.
    """

    sample: Callable[[Domain, torch.Generator], Any]
    apply: Apply


def coarse_axes(spacing: Sequence[float]) -> tuple[int, ...]:
    """Axes whose spacing (mm) is more than three times the finest, nnU-Net's own threshold."""
    return tuple(axis for axis, value in enumerate(spacing) if value / min(spacing) > ANISO_THRESHOLD)


def without_gradient(apply: Apply) -> Apply:
    """In float32 and without a gradient, whatever autocast is on."""

    @functools.wraps(apply)
    def wrapped(image: Tensor, labels: Tensor, draw: Any) -> Tensor:
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            return apply(image.float(), labels, draw)

    return wrapped


def uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [low, high)."""
    return torch.rand(tuple(shape), generator=generator) * (high - low) + low


def choose(values: Sequence[Any], generator: torch.Generator) -> Any:
    """One of the values, each as likely."""
    return values[int(torch.randint(len(values), (), generator=generator))]


def per_sample(values: Tensor, image: Tensor) -> Tensor:
    """(B,) or (B, C) on the device of the images, with as many axes as they have."""
    return values.to(image.device).view(*values.shape, *[1] * (image.ndim - values.ndim))


def unit_range(image: Tensor) -> Tensor:
    """Each sample and channel linearly to [0, 1]; a constant one becomes 0."""
    axes = tuple(range(2, image.ndim))
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    return (image - low) / (high - low).clamp(min=1e-6)


def match_statistics(styled: Tensor, image: Tensor) -> Tensor:
    """Give each sample and channel the mean and s.d. that it had before: nnU-Net's z-score, for a patch.

    The patch's own statistics and not 0 and 1, because nnU-Net's z-score is that of the whole scan.
    """
    axes = tuple(range(2, image.ndim))
    std, mean = torch.std_mean(styled, axes, correction=0, keepdim=True)
    wanted_std, wanted_mean = torch.std_mean(image.float(), axes, correction=0, keepdim=True)
    return (styled - mean) / std.clamp(min=1e-6) * wanted_std + wanted_mean
