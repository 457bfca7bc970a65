"""Every modality of an individual, rebuilt from any one estimate."""

import torch
from torch import Tensor, nn

from nnunet_invariance.common.precision import at_least_float32


def foreground(image: Tensor, available: Tensor, inside: Tensor, margin: float = 1e-3) -> Tensor:
    """Voxels inside the volume where an available channel is above its own minimum by ``margin`` of its range.

    All voxels inside, if that is nowhere. The release takes z-scores of at least -0.35, which is the whole volume where
    the foreground is small.

    Shape: image (B, C, *spatial), available (B, C) and inside (B, 1, *spatial) bool; returns (B, 1, *spatial) bool.
    """
    axes = tuple(range(2, image.ndim))
    low = torch.where(inside, image, torch.inf).amin(axes, keepdim=True)
    high = torch.where(inside, image, -torch.inf).amax(axes, keepdim=True)
    above = inside & available.view(*available.shape, *[1] * len(axes)) & (image > low + margin * (high - low))
    front = above.any(1, keepdim=True)
    return torch.where(front.flatten(1).any(1).view(-1, *[1] * (image.ndim - 1)), front, inside)


class DecompositionLoss(nn.Module):
    r"""Squared error of all modalities, rebuilt from each source (L_decom of PUIR, arXiv 2411.06106).

    .. math:: L = w \frac{\sum_v m_v (\hat x_v - x_v)^2}{\sum_v m_v} + \overline{(\hat x - x)^2}

    for each source, m the foreground; means over the targets that are available and over the voxels inside the volume,
    then over sources and over samples.

    Args:
        weight: w of the foreground; 10 in the release.
    """

    def __init__(self, weight: float = 10.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, outputs: Tensor, image: Tensor, available: Tensor, inside: Tensor, sources: Tensor) -> Tensor:
        """The loss, at least 0.

        Shape:
            outputs: (B, R, C, *spatial), all targets from each of R sources. image: (B, C, *spatial).
            available: (B, C) bool, targets that count. inside: (B, 1, *spatial) bool, voxels of the volume.
            sources: (B, R) bool, sources that count.
        """
        squared = (at_least_float32(outputs) - at_least_float32(image)[:, None]).square()
        targets = available.view(*available.shape, *[1] * (image.ndim - 2)) & inside
        front = targets & foreground(image, available, inside)
        errors = self.weight * _mean(squared, front) + _mean(squared, targets)
        errors = torch.where(sources, errors, 0)
        return (errors.sum(1) / sources.sum(1).clamp(min=1)).mean()


def _mean(squared: Tensor, mask: Tensor) -> Tensor:
    """(B, R): the mean over (C, *spatial) where the mask (B, C, *spatial) is on."""
    total = torch.where(mask[:, None], squared, 0).flatten(2).sum(2)
    return total / mask.flatten(1).sum(1).clamp(min=1)[:, None]
