"""nnU-Net's intensity transforms on rows: a row is one channel of one image, and has its own parameters."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_invariance.augmentation.on_device.draws import Scalar, sample_scalar
from nnunet_invariance.augmentation.on_device.resampling import blur, kernel_reach, lower_resolution

#: nnU-Net's blur cuts a kernel off at this many standard deviations, both sides together.
TRUNCATE = 6.0
SMALLEST = 1e-7  # as in batchgeneratorsv2


@dataclass(frozen=True)
class RowTransform(ABC):
    """A random change of rows.

    Attributes:
        probability: of happening in an image.
        channel_probability: of changing a channel, if it happens.
    """

    probability: float
    channel_probability: float

    @abstractmethod
    def sample(self, rows: Tensor, axes: int, generator: torch.Generator) -> Tensor:
        """Sample the parameters (K, ...) of rows (K, 2), the image and channel of each; ``axes``: spatial axes."""

    @abstractmethod
    def apply(self, rows: Tensor, parameters: Tensor, noise: torch.Generator) -> Tensor:
        """Change rows (K, *spatial), which may be overwritten; ``noise`` is on their device."""


@dataclass(frozen=True)
class Noise(RowTransform):
    """Gaussian noise, of one standard deviation in all channels of an image.

    >>> Noise(1.0, 1.0, (2.0, 2.0)).sample(torch.tensor([[0, 0]]), 3, torch.Generator())
    tensor([2.])
    """

    deviation: Scalar

    def sample(self, rows: Tensor, axes: int, generator: torch.Generator) -> Tensor:
        """(K,) standard deviations."""
        images = int(rows[:, 0].max()) + 1
        return sample_scalar(self.deviation, (images,), generator)[rows[:, 0]]

    def apply(self, rows: Tensor, parameters: Tensor, noise: torch.Generator) -> Tensor:
        """Add the noise."""
        drawn = torch.randn(rows.shape, generator=noise, device=rows.device, dtype=rows.dtype)
        return rows.add_(drawn.mul_(_over(parameters, rows)))


@dataclass(frozen=True)
class Blur(RowTransform):
    """Gaussian blur with its own standard deviation along each axis.

    >>> Blur(1.0, 1.0, (1.0, 1.0)).apply(torch.ones(1, 8, 8), torch.ones(1, 2), torch.Generator()).std() < 1e-6
    tensor(True)
    """

    sigma: tuple[float, float]

    def sample(self, rows: Tensor, axes: int, generator: torch.Generator) -> Tensor:
        """(K, axes) standard deviations in voxels."""
        return sample_scalar(self.sigma, (len(rows), axes), generator)

    def apply(self, rows: Tensor, parameters: Tensor, noise: torch.Generator) -> Tensor:
        """Blur along every axis."""
        reach = kernel_reach(self.sigma[1], TRUNCATE)
        for axis in range(rows.ndim - 1):
            rows = blur(rows, parameters[:, axis], axis, reach, TRUNCATE)
        return rows


@dataclass(frozen=True)
class Brightness(RowTransform):
    """Multiplication with a factor.

    >>> Brightness(1.0, 1.0, (1.0, 1.0)).apply(torch.ones(1, 2, 2), torch.tensor([3.0]), torch.Generator()).sum()
    tensor(12.)
    """

    factor: Scalar

    def sample(self, rows: Tensor, axes: int, generator: torch.Generator) -> Tensor:
        """(K,) factors."""
        return sample_scalar(self.factor, (len(rows),), generator)

    def apply(self, rows: Tensor, parameters: Tensor, noise: torch.Generator) -> Tensor:
        """Multiply."""
        return rows.mul_(_over(parameters, rows))


@dataclass(frozen=True)
class Contrast(Brightness):
    """Multiplication of the distance to the mean with a factor, clipped to the range that the row had.

    >>> Contrast(1.0, 1.0, (1.0, 1.0)).apply(torch.eye(2)[None], torch.tensor([0.0]), torch.Generator()).mean()
    tensor(0.5000)
    """

    def apply(self, rows: Tensor, parameters: Tensor, noise: torch.Generator) -> Tensor:
        """Change the contrast."""
        flat = rows.flatten(1)
        mean = flat.mean(1, keepdim=True)
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        flat = flat.sub_(mean).mul_(parameters[:, None]).add_(mean)
        return torch.minimum(torch.maximum(flat, low, out=flat), high, out=flat).view(rows.shape)


@dataclass(frozen=True)
class LowResolution(RowTransform):
    """Nearest-neighbour sampling with fewer voxels, and linear interpolation back, the same along all axes.

    >>> transform = LowResolution(1.0, 1.0, (0.5, 1.0), kept_axes=())
    >>> transform.apply(torch.ones(1, 8, 8), torch.tensor([0.5]), torch.Generator()).mean()
    tensor(1.)
    """

    scale: tuple[float, float]
    #: Axes that keep their resolution.
    kept_axes: tuple[int, ...]

    def sample(self, rows: Tensor, axes: int, generator: torch.Generator) -> Tensor:
        """(K,) numbers of voxels along an axis, relative to the patch's."""
        return sample_scalar(self.scale, (len(rows),), generator)

    def apply(self, rows: Tensor, parameters: Tensor, noise: torch.Generator) -> Tensor:
        """Lower the resolution."""
        for axis in range(rows.ndim - 1):
            if axis not in self.kept_axes:
                rows = lower_resolution(rows, parameters, axis)
        return rows


@dataclass(frozen=True)
class Gamma(RowTransform):
    r"""Power of the row scaled to [0, 1], with mean and standard deviation kept.

    .. math:: x' = \left( \frac{x - \min x}{\max x - \min x} \right)^\gamma (\max x - \min x) + \min x

    >>> Gamma(1.0, 1.0, (1.0, 1.0), False).apply(torch.eye(2)[None], torch.tensor([1.0]), torch.Generator()).mean()
    tensor(0.5000)
    """

    exponent: Scalar
    #: Whether the negative of the row is transformed.
    inverted: bool

    def sample(self, rows: Tensor, axes: int, generator: torch.Generator) -> Tensor:
        """(K,) exponents."""
        return sample_scalar(self.exponent, (len(rows),), generator)

    def apply(self, rows: Tensor, parameters: Tensor, noise: torch.Generator) -> Tensor:
        """Raise to the power."""
        flat = rows.neg_().flatten(1) if self.inverted else rows.flatten(1)
        mean, size = flat.mean(1, keepdim=True), flat.shape[1]
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        span = high - low
        spread = torch.linalg.vector_norm(flat - mean, dim=1, keepdim=True)  # a CPU needs much longer for std
        flat = flat.sub_(low).div_(span.clamp(min=SMALLEST)).pow_(parameters[:, None]).mul_(span).add_(low)
        flat = flat.sub_(flat.mean(1, keepdim=True))
        new_spread = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        flat = flat.mul_(spread / new_spread.clamp(min=SMALLEST * size**0.5)).add_(mean)
        return (flat.neg_() if self.inverted else flat).view(rows.shape)


def _over(values: Tensor, rows: Tensor) -> Tensor:
    """Append axes of length 1 to (K,), so that it broadcasts over rows (K, *spatial)."""
    return values.view(-1, *[1] * (rows.ndim - 1))
