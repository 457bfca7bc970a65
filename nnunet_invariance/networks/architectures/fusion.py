"""Fusion of feature maps over the present modalities."""

import torch
from torch import Tensor, nn

from nnunet_invariance.networks.presence import over_maps

PREFERENCE = 4.0  # initial logit of a channel's preferred modality


class GatedFusion(nn.Module):
    r"""Weighted mean over modalities, with a softmax over the present ones as weights.

    .. math:: f = \sum_i g_i f_i, \quad g = \mathrm{softmax}_{i\ \mathrm{present}} (w \cdot f_i + b_i)

    The table b adds the identity of the modality, which a shared encoder does not know. Initially channel f prefers
    modality f mod C: with zeros the fused map would not change if the modalities were exchanged, and training would
    first have to find out who is who. Where the preferred modality is missing, the others share its weight.

    >>> fusion, maps = GatedFusion(nn.Conv3d, channels=4, modalities=2), torch.rand(1, 2, 4, 2, 2, 2)
    >>> torch.equal(fusion(maps, torch.tensor([[True, False]])), maps[:, 0])
    True

    Args:
        conv_op: the encoder's type of convolution.
        channels: F, channels of the maps.
        modalities: C.
    """

    def __init__(self, conv_op: type[nn.Conv2d] | type[nn.Conv3d], channels: int, modalities: int) -> None:
        super().__init__()
        self.score = conv_op(channels, 1, 1, bias=False)
        nn.init.zeros_(self.score.weight)
        every = torch.arange(channels)
        self.modality = nn.Parameter(torch.zeros(modalities, channels))
        self.modality.data[every % modalities, every] = PREFERENCE

    def forward(self, maps: Tensor, present: Tensor) -> Tensor:
        """Maps (B, C, F, *spatial) and present (B, C), at least one in each sample, to (B, F, *spatial)."""
        mask = over_maps(present, maps)
        maps = torch.where(mask, maps, 0)  # a product would let NaN and gradients of absent maps through
        score = self.score(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        table = self.modality.view(1, *self.modality.shape, *[1] * (maps.ndim - 3)).to(score.dtype)
        with torch.autocast(maps.device.type, enabled=False):  # autocast would copy all maps to float32
            gates = torch.softmax((score + table).masked_fill(~mask, -torch.inf), dim=1)
            return (gates * maps).sum(1)
