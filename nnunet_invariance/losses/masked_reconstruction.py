"""Reconstruction error of hidden voxels."""

from torch import Tensor, nn

from nnunet_invariance.common.precision import at_least_float32


class MaskedReconstructionLoss(nn.Module):
    r"""Mean squared error over the voxels that were hidden and that hold image content.

    .. math:: L = \frac1B \sum_b \frac{\sum_v m_{bv} (\hat x_{bv} - x_{bv})^2}{\sum_v m_{bv}}

    with :math:`m = 1` for hidden voxels inside the image, 0 for visible and for padded ones; the mean is over
    channels too (masked autoencoders, arXiv 2111.06377; as one term of Alice, arXiv 2302.05615).
    """

    def forward(self, reconstruction: Tensor, image: Tensor, hidden: Tensor) -> Tensor:
        """Shape: reconstruction and image (B, C, *spatial); hidden (B, 1, *spatial), boolean. Returns a scalar.

        A sample without a hidden voxel adds zero.
        """
        squared = (at_least_float32(reconstruction) - at_least_float32(image)).square().mean(1, keepdim=True)
        hidden = hidden.to(squared.dtype)
        per_sample = (squared * hidden).flatten(1).sum(1) / hidden.flatten(1).sum(1).clamp(min=1)
        return per_sample.mean()
