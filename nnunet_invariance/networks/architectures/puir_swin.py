"""The network of PUIR's release (arXiv 2411.06106): SwinUNETR with a learnable prior at the bottleneck."""

import torch
from torch import Tensor, nn

from nnunet_invariance.errors import ShapeError
from nnunet_invariance.networks.architectures.swin_unetr import SwinUNETR, features

NETWORK = f"{__name__}.PUIRSwinUNETR"
SIDE = 3  # of the deepest map, whose number of cells is the width of the attention
PATCH = [96, 96, 96]
HEADS = 3


class PriorRefinement(nn.Module):
    """X = fuse(z, A(z), z), with A(z) what z reads from the prior; the modules have the names of the release.

    The tokens are the channels, each a vector over the cells: ``A(z) = T(softmax(Q(z) K(O)^T / sqrt(d)) V(O))``, with T
    two convolutions.

    >>> PriorRefinement(4)(torch.rand(1, 4, 3, 3, 3)).shape
    torch.Size([1, 4, 3, 3, 3])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.static_prior = nn.Parameter(torch.randn(1, channels, SIDE, SIDE, SIDE))
        self.attn_for_x = nn.MultiheadAttention(SIDE**3, HEADS, batch_first=True)
        self.tansfer_for_mod = nn.Sequential(*(nn.Conv3d(channels, channels, 3, padding=1) for _ in range(2)))
        self.fuse_to_X = nn.Conv3d(3 * channels, channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, 3, 3, 3) to the same shape.

        Raises:
            ShapeError: the map has another size, because the patch is not 96 voxels on every side.
        """
        if z.shape[2:] != (SIDE,) * 3:
            found, wanted = list(z.shape[2:]), [SIDE] * 3
            raise ShapeError(f"The deepest map is {found}, expected {wanted}: this network takes patches of {PATCH}.")
        prior = self.static_prior.expand(len(z), -1, -1, -1, -1).flatten(2)
        read, _ = self.attn_for_x(z.flatten(2), prior, prior, need_weights=False)
        return self.fuse_to_X(torch.cat((z, self.tansfer_for_mod(read.view_as(z)), z), 1))


class PUIRSwinUNETR(SwinUNETR):
    """:class:`SwinUNETR` whose deepest map passes through :class:`PriorRefinement`.

    >>> PUIRSwinUNETR(1, 3)(torch.rand(1, 1, 64, 64, 64)).shape  # doctest: +SKIP
    torch.Size([1, 3, 64, 64, 64])
    """

    def refinement(self, width: int) -> nn.Module:
        """The prior and the attention that reads it."""
        return PriorRefinement(features(width)[-1])
