"""Projection head of Alice: logits over prototypes for the class token, encoder tokens and decoder tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosinePrototypes(nn.Module):
    """Cosines of an embedding with K learned unit vectors (a weight-normalised linear layer with gain 1).

    >>> CosinePrototypes(dim=8, num_prototypes=4)(torch.randn(2, 8)).abs().max().item() <= 1
    True
    """

    def __init__(self, dim: int, num_prototypes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_prototypes, dim), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., K), in [-1, 1]."""
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


class DistillationHead(nn.Module):
    """Encoder and decoder tokens to logits over the same K prototypes (Alice, arXiv 2302.05615).

    A linear layer for each kind of token maps it to ``width``; both share a three-layer MLP with GELU that ends in
    ``bottleneck`` channels. The class token and the other tokens have their own prototypes.

    >>> head = DistillationHead(32, 16, hidden=64, num_prototypes=10)
    >>> head.encoder_tokens(torch.zeros(2, 5, 32)).shape
    torch.Size([2, 5, 10])

    Args:
        encoder_channels: channels of the encoder's token stage.
        decoder_channels: channels of the decoder's token stage.
        hidden: width of the MLP's two hidden layers.
    """

    def __init__(
        self,
        encoder_channels: int,
        decoder_channels: int,
        hidden: int,
        width: int = 384,
        bottleneck: int = 256,
        num_prototypes: int = 512,
    ) -> None:
        super().__init__()
        self.encoder_map = nn.Linear(encoder_channels, width)
        self.decoder_map = nn.Linear(decoder_channels, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.class_prototypes = CosinePrototypes(bottleneck, num_prototypes)
        self.token_prototypes = CosinePrototypes(bottleneck, num_prototypes)

    def class_token(self, x: Tensor) -> Tensor:
        """Pooled encoder features (B, C) to logits (B, K)."""
        return self.class_prototypes(self.mlp(self.encoder_map(x)))

    def encoder_tokens(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, K)."""
        return self.token_prototypes(self.mlp(self.encoder_map(x)))

    def decoder_tokens(self, x: Tensor) -> Tensor:
        """(B, M, C') to (B, M, K)."""
        return self.token_prototypes(self.mlp(self.decoder_map(x)))
