"""A small block per modality in front of an encoder that all modalities share."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 8  # channels of the block per modality


class ModalityStem(nn.Module):
    r"""Adds to the image of each modality what filters of its own find in it.

    .. math:: x_i \leftarrow x_i + v_i \cdot \mathrm{LeakyReLU}(\mathrm{IN}(w_i * x_i))

    v is 0 initially, so that the encoder first sees the images as they are, and one that was pre-trained on one channel
    fits. An image of zeros stays an image of zeros.

    >>> x = torch.rand(1, 2, 4, 4, 4)
    >>> torch.equal(ModalityStem(modalities=2, kernel=(3, 3, 3))(x), x)
    True

    Args:
        modalities: C.
        kernel: size of the filters w, odd, one number per spatial axis.
    """

    def __init__(self, modalities: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.modality_filters = nn.Parameter(torch.empty(modalities, WIDTH, *kernel))
        nn.init.kaiming_normal_(self.modality_filters.view(-1, 1, *kernel), a=1e-2)
        self.modality_weights = nn.Parameter(torch.zeros(modalities, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, *spatial) to the same shape."""
        filters = self.modality_filters.flatten(0, 1)[:, None]
        padding = [size // 2 for size in filters.shape[2:]]
        convolve = F.conv2d if x.ndim == 4 else F.conv3d
        found = convolve(x, filters.to(x.dtype), padding=padding, groups=x.shape[1])
        found = F.leaky_relu(F.instance_norm(found)).unflatten(1, self.modality_weights.shape)
        weights = self.modality_weights.view(*self.modality_weights.shape, *[1] * (x.ndim - 2))
        return x + (weights * found).sum(2).to(x.dtype)
