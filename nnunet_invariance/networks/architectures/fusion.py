"""Fusion of feature maps over the modalities that are present."""

import torch
from torch import Tensor, nn

from nnunet_invariance.networks.presence import over_maps


class GatedFusion(nn.Module):
    r"""A weighted mean over modalities, whose weights are a softmax over those that are present.

    .. math:: f = \sum_i g_i f_i, \quad g = \mathrm{softmax}_{i\ \mathrm{present}} (w \cdot f_i + b_i)

    It starts as the plain mean. The table b gives back the identity of a modality, which a shared encoder does not see.

    Args:
        conv_op: of the encoder.
        channels: F, of the maps.
        modalities: C.
    """

    def __init__(self, conv_op: type[nn.Module], channels: int, modalities: int) -> None:
        super().__init__()
        self.score = conv_op(channels, 1, 1, bias=False)
        nn.init.zeros_(self.score.weight)
        self.modality = nn.Parameter(torch.zeros(modalities, channels))

    def forward(self, maps: Tensor, present: Tensor) -> Tensor:
        """Maps (B, C, F, *spatial) and present (B, C), at least one in each sample, to (B, F, *spatial)."""
        mask = over_maps(present, maps)
        maps = torch.where(mask, maps, 0)  # a product would let NaN and gradients of absent maps through
        score = self.score(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        logits = score + self.modality.view(1, *self.modality.shape, *[1] * (maps.ndim - 3))
        return (torch.softmax(logits.masked_fill(~mask, -torch.inf), dim=1) * maps).sum(1)
