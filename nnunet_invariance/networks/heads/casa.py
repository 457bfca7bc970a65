"""Cross-attention semantic alignment (CASA)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 8


class CrossAttentionAlignment(nn.Module):
    r"""One post-norm cross-attention layer that re-expresses target tokens at the places of the query tokens.

    .. math:: h = \mathrm{LN}(q + W_o\,\mathrm{softmax}(W_q q (W_k x)^\top / \sqrt{d_h}) W_v x), \quad
              y = \mathrm{LN}(h + W_2\,\mathrm{ReLU}(W_1 h))

    (CASA of Alice, arXiv 2302.05615, in the residual form of the release.) The plain form is what the paper's figure
    draws: :math:`y = W_o\,\mathrm{softmax}(\cdot) W_v x`. Projections of the attention have no bias.

    Args:
        dim: channels of queries, keys and values.
        heads: attention heads; ``dim`` must be a multiple.
        dropout: of the attention weights and, in the residual form, of both branches.
        form: ``residual`` or ``plain``.
    """

    def __init__(
        self,
        dim: int = 512,
        heads: int = HEADS,
        hidden: int = 2048,
        dropout: float = 0.1,
        form: Literal["residual", "plain"] = "residual",
    ) -> None:
        super().__init__()
        self.heads = heads
        self.form = form
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.dropout = nn.Dropout(dropout)
        if form == "residual":
            self.attention_norm = nn.LayerNorm(dim, eps=1e-6)
            self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
            self.output_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, query: Tensor, target: Tensor, target_valid: Tensor | None = None) -> Tensor:
        """Shape: query (B, N, dim), target (B, M, dim), target_valid (B, M) boolean; returns (B, N, dim).

        Target tokens that are not valid (padding) get no attention; every sample needs at least one that is.
        """
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, x in ((self.query, query), (self.key, target), (self.value, target))
        )
        mask = None if target_valid is None else target_valid[:, None, None, :]
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=self.dropout.p if self.training else 0.0
        )
        aligned = self.out(attended.transpose(1, 2).flatten(2))
        if self.form == "plain":
            return aligned
        h = self.attention_norm(query + self.dropout(aligned))
        return self.output_norm(h + self.dropout(self.feed_forward(h)))
