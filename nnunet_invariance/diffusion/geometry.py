"""Conversion of slices to squares of one size, and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Position of the slices of one volume in squares: scaled to isotropic pixels, centred, padded with 0.

    Attributes:
        shape: (h, w) of a slice.
        scaled: (h, w) of the slice inside the square.
        size: R, the side of the square.

    >>> Geometry.fit((100, 50), (1.0, 1.0), 64).scaled
    (64, 32)
    """

    shape: tuple[int, int]
    scaled: tuple[int, int]
    size: int

    @classmethod
    def fit(cls, shape: Sequence[int], spacing: Sequence[float], size: int) -> "Geometry":
        """The largest isotropic picture of a slice (h, w) with pixels of ``spacing`` mm in a square of ``size``."""
        extent = [n * s for n, s in zip(shape, spacing, strict=True)]
        height, width = (max(1, round(size * e / max(extent))) for e in extent)
        return cls((shape[0], shape[1]), (height, width), size)

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the slice in the square."""
        rows, columns = (slice((self.size - n) // 2, (self.size - n) // 2 + n) for n in self.scaled)
        return rows, columns

    def to_square(self, stack: Tensor, labels: bool = False) -> Tensor:
        """Convert (D, h, w) to (D, R, R) of the same dtype; antialiased linear for images, nearest for labels."""
        square = torch.zeros(len(stack), self.size, self.size, dtype=stack.dtype)
        rows, columns = self.box
        square[:, rows, columns] = _resize(stack, self.scaled, labels)
        return square

    def from_square(self, stack: Tensor) -> Tensor:
        """Convert images (D, R, R) back to (D, h, w)."""
        rows, columns = self.box
        return _resize(stack[:, rows, columns], self.shape, labels=False)


def _resize(stack: Tensor, size: tuple[int, int], labels: bool) -> Tensor:
    if labels:
        return F.interpolate(stack[:, None], size=size, mode="nearest-exact")[:, 0]
    return F.interpolate(stack[:, None], size=size, mode="bilinear", antialias=True, align_corners=False)[:, 0]
