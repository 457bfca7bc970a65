"""Cross-attention semantic alignment (CASA)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.errors import OptionError

HEADS = 8


class CrossAttentionAlignment(nn.Module):
    r"""One post-norm cross-attention layer that resamples target tokens at the positions of query tokens.

    .. math:: h = \mathrm{LN}(q + W_o\,\mathrm{softmax}(W_q q (W_k x)^\top / \sqrt{d_h}) W_v x), \quad
              y = \mathrm{LN}(h + W_2\,\mathrm{ReLU}(W_1 h))

    This is the CASA of Alice (arXiv 2302.05615) in the residual form of the release. The plain form is the one in the
    paper's figure: :math:`y = W_o\,\mathrm{softmax}(\cdot) W_v x`. The projections of the attention have no bias.

    >>> import torch
    >>> CrossAttentionAlignment(dim=16, heads=2)(torch.zeros(1, 5, 16), torch.zeros(1, 7, 16)).shape
    torch.Size([1, 5, 16])

    Args:
        dim: channels of queries, keys and values.
        heads: attention heads; ``dim`` must be a multiple.
        hidden: width of the feed-forward layer of the residual form.
        dropout: of the attention weights and, in the residual form, of both branches.
        form: "residual" or "plain".

    Raises:
        OptionError: there is no such form, or ``dim`` is no multiple of ``heads``.
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
        if form not in ("residual", "plain"):
            raise OptionError(f"Argument 'form' is {form!r}; expected 'residual' or 'plain'.")
        if dim % heads:
            raise OptionError(f"Argument 'dim' is {dim}; expected a multiple of {heads}, the number of heads.")
        self.heads = heads
        self.form = form
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.dropout = nn.Dropout(dropout)
        if form == "residual":
            self.attention_norm = nn.LayerNorm(dim, eps=1e-6)
            self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
            self.output_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, query: Tensor, target: Tensor, valid_mask: Tensor | None = None) -> Tensor:
        """Shape: query (B, N, dim), target (B, M, dim), valid_mask (B, M) bool; returns (B, N, dim).

        Target tokens that are False in the mask (padding) get no attention; every sample needs one that is True.
        """
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, x in ((self.query, query), (self.key, target), (self.value, target))
        )
        mask = None if valid_mask is None else valid_mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=self.dropout.p if self.training else 0.0
        )
        aligned = self.out(attended.transpose(1, 2).flatten(2))
        if self.form == "plain":
            return aligned
        h = self.attention_norm(query + self.dropout(aligned))
        return self.output_norm(h + self.dropout(self.feed_forward(h)))
