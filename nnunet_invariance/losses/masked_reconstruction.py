"""Reconstruction error of masked voxels."""

from torch import Tensor

from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.losses.base import Loss, check_dimensions, check_shape


class MaskedReconstructionLoss(Loss):
    r"""Mean squared error over masked voxels (masked autoencoders, arXiv 2111.06377; Alice, arXiv 2302.05615).

    .. math:: L = \frac1B \sum_b \frac{\sum_v m_{bv} (\hat x_{bv} - x_{bv})^2}{\sum_v m_{bv}}

    averaged over channels too. m is 1 for voxels that the encoder did not see and that lie inside the image.

    >>> import torch
    >>> image, mask = torch.zeros(2, 1, 4, 4, 4), torch.ones(2, 1, 4, 4, 4, dtype=torch.bool)
    >>> MaskedReconstructionLoss()(image + 0.5, image, mask)
    tensor(0.2500)
    """

    def forward(self, reconstruction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        """The loss in float32 or better, at least 0.

        Shape:
            reconstruction, image: (B, C, *spatial).
            mask: (B, 1, *spatial) bool, the voxels that count.
            Returns a scalar; samples without such a voxel add 0.

        Raises:
            ShapeError: the shapes do not agree.
        """
        check_dimensions("reconstruction", reconstruction, 3, "(B, C, *spatial)")
        check_shape("image", image, reconstruction.shape, "(B, C, *spatial) of 'reconstruction'")
        check_shape("mask", mask, (len(image), 1, *image.shape[2:]), "(B, 1, *spatial) of 'reconstruction'")
        squared = (at_least_float32(reconstruction) - at_least_float32(image)).square().mean(1, keepdim=True)
        masked = squared.masked_fill(~mask.bool(), 0)  # a product would let NaN of other voxels through
        return (masked.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)).mean()
