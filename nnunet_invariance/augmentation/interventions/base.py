"""Interface of the interventions, and the helpers that they share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from torch import Tensor

from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.common.options import Options, choice
from nnunet_invariance.errors import ShapeError

Parameters = TypeVar("Parameters")


class Domain(NamedTuple):
    """Everything that the sampling of parameters depends on.

    Attributes:
        shape: (B, C, *spatial) of the images.
        classes: number of labels; they run from 0 to ``classes`` - 1.
        coarse: spatial axes (0 is the first) along which kernels have size 1.

    >>> Domain((1, 1, 8, 32, 32), classes=2, coarse=(0,)).kernel(3)
    (1, 3, 3)
    """

    shape: tuple[int, ...]
    classes: int
    coarse: tuple[int, ...] = ()

    def kernel(self, size: int) -> tuple[int, ...]:
        """A kernel of this size, 1 along the coarse axes."""
        return tuple(1 if axis in self.coarse else size for axis in range(len(self.shape) - 2))


@dataclass(frozen=True)
class Intervention(ABC, Options, Generic[Parameters]):
    """A random change of the style of an image that keeps its anatomy and its labels.

    ``sample`` makes small parameters with a CPU generator, so that nothing large is copied to the device and the same
    parameters can be applied on any device. ``apply`` is deterministic for given parameters. Calling an intervention
    does both.
    """

    @property
    def reads_labels(self) -> bool:
        """Whether the result depends on the labels."""
        return False

    @abstractmethod
    def sample(self, domain: Domain, generator: torch.Generator) -> Parameters:
        """Sample the parameters of one application to images of this domain, with a CPU generator."""

    @abstractmethod
    def transform(self, image: Tensor, labels: Tensor, params: Parameters) -> Tensor:
        """Apply the parameters; :meth:`apply` calls it with a float32 image, without gradient and autocast."""

    def apply(self, image: Tensor, labels: Tensor | None, params: Parameters) -> Tensor:
        """Apply sampled parameters. It computes in float32 and without a gradient.

        Args:
            image: (B, C, *spatial) with two or three spatial axes.
            labels: (B, 1, *spatial) int64, in [0, classes). None is allowed where :attr:`reads_labels` is False.
            params: returned by :meth:`sample`.

        Returns the new image with the shape and device of ``image``; its dtype too if that is a floating-point one,
        float32 otherwise.

        Raises:
            ShapeError: the image or the labels have another shape, or labels are needed and missing.
        """
        self._check(image, labels)
        if labels is None or not self.reads_labels:
            labels = torch.zeros_like(image[:, :1], dtype=torch.long)
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            styled = self.transform(image.float(), labels, params)
        return styled.to(image.dtype) if image.is_floating_point() else styled

    def __call__(
        self,
        image: Tensor,
        labels: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        valid_mask: Tensor | None = None,
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Sample parameters and apply them.

        Args:
            image: (B, C, *spatial) with two or three spatial axes.
            labels: (B, 1, *spatial) of integers; values below 0 (nnU-Net's mark of padding) count as 0.
            generator: a CPU generator; default: PyTorch's global one.
            valid_mask: (B, 1, *spatial) bool; voxels outside it keep their values. Default: all voxels change.
            spacing: mm per axis; kernels have size 1 along coarse axes (:func:`coarse_axes`). Default: isotropic.

        Returns an image as :meth:`apply` does.

        Raises:
            ShapeError: see :meth:`apply`.
        """
        self._check(image, labels)
        classes = 1
        if labels is not None:
            labels = labels.long().clamp(min=0)
            classes = int(labels.max()) + 1
        domain = Domain(tuple(image.shape), classes, () if spacing is None else coarse_axes(spacing))
        params = self.sample(domain, torch.default_generator if generator is None else generator)
        styled = self.apply(image, labels, params)
        return styled if valid_mask is None else torch.where(valid_mask, styled, image.to(styled.dtype))

    def _check(self, image: Tensor, labels: Tensor | None) -> None:
        if image.ndim not in (4, 5):
            raise ShapeError(
                f"The image has shape {tuple(image.shape)}; expected (batch, channels, *spatial) with two or three "
                "spatial axes. Add the missing axes, for example image[None, None]."
            )
        if labels is None and self.reads_labels:
            raise ShapeError(
                f'{self} reads labels, but labels is None. Pass labels, or construct it with tissues="image".'
            )
        expected = (image.shape[0], 1, *image.shape[2:])
        if labels is not None and tuple(labels.shape) != expected:
            raise ShapeError(
                f"The labels have shape {tuple(labels.shape)}; expected {expected} for an image of shape "
                f"{tuple(image.shape)}. Labels have one channel."
            )


@dataclass(frozen=True)
class TissueIntervention(Intervention[Parameters]):
    """An intervention that treats the tissues of an image differently.

    With ``tissues="labels"`` the given labels separate the tissues (each is split further by intensity where the
    intervention says so). With ``tissues="image"`` the labels are not read: the whole image counts as label 0. The
    result then has no edges at the borders of labels, which a network could use to find the labels.
    """

    subject = "Argument {name!r} of the intervention is {value!r}"
    tissues: Literal["labels", "image"] = choice("labels", "image", doc="Whether labels separate the tissues.")

    @property
    def reads_labels(self) -> bool:
        """Whether the result depends on the labels."""
        return self.tissues == "labels"


def coarse_axes(spacing: Sequence[float]) -> tuple[int, ...]:
    """Axes whose spacing (mm) is more than three times the finest, nnU-Net's own threshold.

    >>> coarse_axes((5.0, 1.0, 1.0))
    (0,)
    """
    return tuple(axis for axis, value in enumerate(spacing) if value / min(spacing) > ANISO_THRESHOLD)


def uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [low, high)."""
    return torch.rand(tuple(shape), generator=generator) * (high - low) + low


def choose(values: Sequence[Any], generator: torch.Generator) -> Any:
    """One of the values, all with equal probability."""
    return values[int(torch.randint(len(values), (), generator=generator))]


def per_sample(values: Tensor, image: Tensor) -> Tensor:
    """Move (B,) or (B, C) to the device of the images and append axes of size 1, so that it broadcasts over them."""
    return copy_to(image.device, values).view(*values.shape, *[1] * (image.ndim - values.ndim))


def unit_range(image: Tensor) -> Tensor:
    """Scale each sample and channel linearly to [0, 1]; a constant one becomes 0."""
    axes = tuple(range(2, image.ndim))
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    return (image - low) / (high - low).clamp(min=1e-6)


def match_statistics(styled: Tensor, image: Tensor) -> Tensor:
    """Give each sample and channel of ``styled`` the mean and standard deviation that it has in ``image``.

    This repeats nnU-Net's z-score for a patch. The patch's own statistics are used instead of 0 and 1, because nnU-Net
    computes its z-score over the whole scan.
    """
    axes = tuple(range(2, image.ndim))
    std, mean = torch.std_mean(styled, axes, correction=0, keepdim=True)
    wanted_std, wanted_mean = torch.std_mean(image.float(), axes, correction=0, keepdim=True)
    return (styled - mean) / std.clamp(min=1e-6) * wanted_std + wanted_mean
