"""The learnable biological prior, read by attention (arXiv 2411.06106)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.errors import OptionError
from nnunet_invariance.networks.planned import PlannedModule, to_tokens

PriorTokens = Literal["spatial", "channel"]


class PriorAttention(nn.Module):
    r"""Reads from a learnable prior, shared by all individuals and modalities, what a feature map lacks.

    .. math:: z' = \mathrm{MHA}(q = \mathrm{LN}(z), k = O, v = O)

    With ``tokens="spatial"`` the queries are the cells of the map, each a vector over the channels, so the map may have
    any size. With ``"channel"``, the form of the release, they are the channels, each a vector over the cells, which
    fixes the size of the map.

    >>> PriorAttention(8, (2, 2, 2))(torch.rand(1, 8, 2, 2, 2)).shape
    torch.Size([1, 8, 2, 2, 2])

    Args:
        channels: F, channels of the map.
        map_size: spatial size of the map of one patch; only "channel" depends on it.
        tokens: "spatial" or "channel".
        length: K, number of entries of a "spatial" prior; a "channel" prior has F.

    Raises:
        OptionError: ``tokens`` is neither.
    """

    def __init__(
        self,
        channels: int,
        map_size: Sequence[int],
        tokens: PriorTokens = "spatial",
        length: int = 64,
    ) -> None:
        super().__init__()
        if tokens not in ("spatial", "channel"):
            raise OptionError(f"Argument 'tokens' is {tokens!r}; expected 'spatial' or 'channel'.")
        self.tokens = tokens
        width, heads = (channels, (8, 4, 2, 1)) if tokens == "spatial" else (math.prod(map_size), (3, 4, 2, 1))
        # The scale of the prior is that of the normalised query.
        self.prior = nn.Parameter(torch.randn(1, length if tokens == "spatial" else channels, width))
        self.attention = nn.MultiheadAttention(width, next(h for h in heads if width % h == 0), batch_first=True)

    def forward(self, z: Tensor) -> Tensor:
        """(N, F, *spatial) to the same shape."""
        query = F.layer_norm(to_tokens(z), (z.shape[1],))
        query = query if self.tokens == "spatial" else query.transpose(1, 2)
        prior = self.prior.expand(len(z), -1, -1)
        found, _ = self.attention(query, prior, prior, need_weights=False)
        found = found.transpose(1, 2) if self.tokens == "spatial" else found
        return found.reshape(z.shape)


class Personalization(nn.Module):
    """One modality's estimate of X_h: its features and what it read from the prior, fused by a convolution.

    Args:
        encoder: the encoder of nnU-Net's planned network; kernel, norm and activation are those of its deepest stage.
        map_size, tokens, length: as in :class:`PriorAttention`.
    """

    def __init__(self, encoder: PlannedModule, map_size: Sequence[int], tokens: PriorTokens, length: int) -> None:
        super().__init__()
        channels, kernel = encoder.output_channels[-1], list(encoder.kernel_sizes[-1])
        self.retrieval = PriorAttention(channels, map_size, tokens, length)
        self.fuse = encoder.conv_op(2 * channels, channels, kernel, padding=[k // 2 for k in kernel])
        self.norm = encoder.norm_op(channels, **(encoder.norm_op_kwargs or {}))
        self.activation = encoder.nonlin(**(encoder.nonlin_kwargs or {}))

    def forward(self, z: Tensor) -> Tensor:
        """(N, F, *spatial) to the same shape."""
        return self.activation(self.norm(self.fuse(torch.cat((z, self.retrieval(z)), 1))))
