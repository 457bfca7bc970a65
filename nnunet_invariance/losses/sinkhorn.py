"""Sinkhorn-Knopp: targets that use all prototypes equally."""

import torch
from torch import Tensor

from nnunet_invariance.common.collectives import all_reduce_max, all_reduce_sum
from nnunet_invariance.common.precision import at_least_float32


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, valid_mask: Tensor | None = None, iterations: int = 3) -> Tensor:
    r"""Assignments of N tokens to K prototypes that give every prototype the same total, in place of a softmax.

    .. math:: Q \leftarrow Q / \textstyle\sum_n Q_{nk}, \quad Q \leftarrow Q / \textstyle\sum_k Q_{nk}, \qquad Q_0 = e^x

    repeated (SwAV, arXiv 2006.09882), in logarithms because logits over a small temperature overflow. Sums over tokens
    run over all ranks, which must call this function equally often.

    >>> sinkhorn_knopp(torch.tensor([[9.0, 0.0], [9.0, 0.0]]))  # a softmax would give both to the first prototype
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])

    Args:
        logits: x, (N, K), already divided by the temperature.
        valid_mask: (N,) bool, False for tokens that take no share of a prototype. Default: all True.
        iterations: number of repetitions.

    Returns:
        (N, K) in float32 or better; each row sums to 1.
    """
    q = at_least_float32(logits)
    for _ in range(iterations):
        shares = q if valid_mask is None else q.masked_fill(~valid_mask[:, None], -torch.inf)
        highest = all_reduce_max(shares.amax(0) if len(shares) else q.new_full(q.shape[1:], -torch.inf))
        highest = highest.nan_to_num(neginf=0.0)
        total = all_reduce_sum((shares - highest).exp().sum(0)).log() + highest
        q = (q - total.nan_to_num(neginf=0.0)).log_softmax(1)
    return q.exp()
