"""Slices as squares of one size, and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """How slices of one volume lie in squares: scaled to isotropic pixels, centred, padded with 0.

    Attributes:
        shape: (h, w) of a slice.
        scaled: (h, w) of the slice inside the square.
        size: R, the square's side.
    """

    shape: tuple[int, int]
    scaled: tuple[int, int]
    size: int

    @classmethod
    def fit(cls, shape: Sequence[int], spacing: Sequence[float], size: int) -> "Geometry":
        """The largest isotropic picture of a slice (h, w) with pixels of ``spacing`` mm in a square of ``size``."""
        extent = [n * s for n, s in zip(shape, spacing, strict=True)]
        scaled = tuple(max(1, round(size * e / max(extent))) for e in extent)
        return cls(tuple(shape), scaled, size)

    @property
    def box(self) -> tuple[slice, slice]:
        """Where the slice lies in the square."""
        first = [(self.size - n) // 2 for n in self.scaled]
        return tuple(slice(a, a + n) for a, n in zip(first, self.scaled, strict=True))

    def to_square(self, stack: Tensor, labels: bool = False) -> Tensor:
        """(D, h, w) to (D, R, R), same type; linear with low-pass for images, nearest for labels."""
        square = torch.zeros(len(stack), self.size, self.size, dtype=stack.dtype)
        square[(slice(None), *self.box)] = _resize(stack, self.scaled, labels)
        return square

    def from_square(self, stack: Tensor) -> Tensor:
        """Images (D, R, R) back to (D, h, w)."""
        return _resize(stack[(slice(None), *self.box)], self.shape, labels=False)


def _resize(stack: Tensor, size: tuple[int, int], labels: bool) -> Tensor:
    if labels:
        return F.interpolate(stack[:, None], size=size, mode="nearest-exact")[:, 0]
    return F.interpolate(stack[:, None], size=size, mode="bilinear", antialias=True, align_corners=False)[:, 0]
