"""The network that PUIR's authors release (arXiv 2411.06106): SwinUNETR with a prior read at the bottleneck."""

import torch
from torch import Tensor, nn

from nnunet_invariance.errors import ShapeError
from nnunet_invariance.networks.architectures.swin_unetr import SwinUNETR, features

NETWORK = f"{__name__}.PUIRSwinUNETR"
SIDE = 3  # of the deepest map; the attention is as wide as it has cells
PATCH = [96, 96, 96]
HEADS = 3


class PriorRefinement(nn.Module):
    """X = fuse(z, A(z), z) with A(z) the prior as z asks for it; modules have the names of the release.

    Channels are the tokens and cells their entries: ``A(z) = T(softmax(Q(z) K(O)^T / sqrt(d)) V(O))``, with T two
    convolutions.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.static_prior = nn.Parameter(torch.randn(1, channels, SIDE, SIDE, SIDE))
        self.attn_for_x = nn.MultiheadAttention(SIDE**3, HEADS, batch_first=True)
        self.tansfer_for_mod = nn.Sequential(*(nn.Conv3d(channels, channels, 3, padding=1) for _ in range(2)))
        self.fuse_to_X = nn.Conv3d(3 * channels, channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, 3, 3, 3), same shape.

        Raises:
            ShapeError: another size, from another patch than 96 voxels a side.
        """
        if z.shape[2:] != (SIDE,) * 3:
            found, wanted = list(z.shape[2:]), [SIDE] * 3
            raise ShapeError(f"The deepest map is {found}, expected {wanted}: this network takes patches of {PATCH}.")
        prior = self.static_prior.expand(len(z), -1, -1, -1, -1).flatten(2)
        read, _ = self.attn_for_x(z.flatten(2), prior, prior, need_weights=False)
        return self.fuse_to_X(torch.cat((z, self.tansfer_for_mod(read.view_as(z)), z), 1))


class PUIRSwinUNETR(SwinUNETR):
    """:class:`SwinUNETR` of one channel and more whose deepest map goes through :class:`PriorRefinement`."""

    def refinement(self, width: int) -> nn.Module:
        """The prior and what reads it."""
        return PriorRefinement(features(width)[-1])
