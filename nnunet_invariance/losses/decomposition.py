"""Reconstruction of every modality of an individual from any one of its representations."""

import torch
from torch import Tensor

from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.losses.base import Loss, check_dimensions, check_number, check_shape


def foreground(image: Tensor, present: Tensor, valid_mask: Tensor, margin: float = 1e-3) -> Tensor:
    """Voxels where a present channel exceeds its own minimum by ``margin`` of its range.

    Samples without such a voxel have all valid voxels as foreground. The release takes z-scores of at least -0.35,
    which is the whole volume where the foreground is small.

    Shape: image (B, C, *spatial), present (B, C) bool, valid_mask (B, 1, *spatial) bool; returns (B, 1, *spatial) bool.
    """
    axes = tuple(range(2, image.ndim))
    low = torch.where(valid_mask, image, torch.inf).amin(axes, keepdim=True)
    high = torch.where(valid_mask, image, -torch.inf).amax(axes, keepdim=True)
    above = valid_mask & present.view(*present.shape, *[1] * len(axes)) & (image > low + margin * (high - low))
    front = above.any(1, keepdim=True)
    return torch.where(front.flatten(1).any(1).view(-1, *[1] * (image.ndim - 1)), front, valid_mask)


class DecompositionLoss(Loss):
    r"""Squared error of all modalities, reconstructed from each source (L_decom of PUIR, arXiv 2411.06106).

    .. math:: L = w \frac{\sum_v m_v (\hat x_v - x_v)^2}{\sum_v m_v} + \overline{(\hat x - x)^2}

    for each source, with m the foreground. The means are over present target modalities and valid voxels, then over
    sources, then over samples.

    >>> image, mask = torch.rand(1, 2, 4, 4, 4), torch.ones(1, 1, 4, 4, 4, dtype=torch.bool)
    >>> present, sources = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    >>> outputs = image[:, None].expand(-1, 3, -1, -1, -1, -1)
    >>> DecompositionLoss()(outputs, image, present, mask, sources)
    tensor(0.)

    Args:
        weight: w of the foreground, at least 0; 10 in the release.

    Raises:
        OptionError: the weight is out of range.
    """

    def __init__(self, weight: float = 10.0) -> None:
        super().__init__()
        self.weight = check_number("weight", weight, 0)

    def forward(self, outputs: Tensor, image: Tensor, present: Tensor, valid_mask: Tensor, sources: Tensor) -> Tensor:
        """The loss in float32 or better, at least 0.

        Shape:
            outputs: (B, R, C, *spatial), all targets from each of R sources. image: (B, C, *spatial).
            present: (B, C) bool, the targets that the sample has. valid_mask: (B, 1, *spatial) bool, voxels inside the
            image. sources: (B, R) bool, the sources that the sample has.
            Returns a scalar; samples without a source add 0.

        Raises:
            ShapeError: the shapes do not agree.
        """
        check_dimensions("image", image, 3, "(B, C, *spatial)")
        batch, channels, *spatial = image.shape
        check_dimensions("sources", sources, 2, "(B, R)", most=2)
        check_shape("sources", sources, (batch, sources.shape[1]), "(B, R) with the B of 'image'")
        check_shape("outputs", outputs, (*sources.shape, channels, *spatial), "(B, R, C, *spatial)")
        check_shape("present", present, (batch, channels), "(B, C) of 'image'")
        check_shape("valid_mask", valid_mask, (batch, 1, *spatial), "(B, 1, *spatial) of 'image'")
        squared = (at_least_float32(outputs) - at_least_float32(image)[:, None]).square()
        targets = present.view(*present.shape, *[1] * len(spatial)) & valid_mask
        front = targets & foreground(image, present, valid_mask)
        errors = self.weight * _mean(squared, front) + _mean(squared, targets)
        errors = torch.where(sources, errors, 0)
        return (errors.sum(1) / sources.sum(1).clamp(min=1)).mean()


def _mean(squared: Tensor, mask: Tensor) -> Tensor:
    """(B, R): the mean over (C, *spatial) where the mask (B, C, *spatial) is True."""
    total = torch.where(mask[:, None], squared, 0).flatten(2).sum(2)
    return total / mask.flatten(1).sum(1).clamp(min=1)[:, None]
