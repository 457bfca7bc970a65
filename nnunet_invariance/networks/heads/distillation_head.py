"""Projection head of Alice: codes for the class token, encoder tokens and decoder tokens."""

import torch.nn.functional as F
from torch import Tensor, nn


class CosineCodes(nn.Module):
    """Cosine of an L2-normalised embedding with each of K learned unit codes (a weight-normed layer of gain 1)."""

    def __init__(self, dim: int, codes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.trunc_normal_(nn.Linear(dim, codes, bias=False).weight.data, std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., K), in [-1, 1]."""
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


class DistillationHead(nn.Module):
    """Encoder and decoder tokens into one space of K codes (Alice, arXiv 2302.05615).

    Input maps bring both kinds of tokens to ``width``; a shared three-layer MLP with GELU ends in a ``bottleneck``;
    class token and tokens have their own layer of codes.

    Args:
        encoder_channels: channels of the encoder's token stage.
        decoder_channels: channels of the decoder stage that is read.
        hidden: width of the MLP's two hidden layers.
    """

    def __init__(
        self,
        encoder_channels: int,
        decoder_channels: int,
        hidden: int,
        width: int = 384,
        bottleneck: int = 256,
        codes: int = 512,
    ) -> None:
        super().__init__()
        self.encoder_map = nn.Linear(encoder_channels, width)
        self.decoder_map = nn.Linear(decoder_channels, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.class_codes = CosineCodes(bottleneck, codes)
        self.token_codes = CosineCodes(bottleneck, codes)

    def class_token(self, x: Tensor) -> Tensor:
        """Pooled encoder features (B, C) to logits (B, K)."""
        return self.class_codes(self.mlp(self.encoder_map(x)))

    def encoder_tokens(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, K)."""
        return self.token_codes(self.mlp(self.encoder_map(x)))

    def decoder_tokens(self, x: Tensor) -> Tensor:
        """(B, M, C') to (B, M, K)."""
        return self.token_codes(self.mlp(self.decoder_map(x)))
