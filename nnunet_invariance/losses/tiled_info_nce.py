"""The core of every InfoNCE of the package: exact, tile by tile, in memory linear in the number of rows."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_invariance.common.collectives import (
    all_gather_rows,
    all_reduce_sum,
    gather_row_counts,
    get_rank,
    get_world_size,
)
from nnunet_invariance.common.precision import at_least_float32

#: How class counts become weights: n to this power.
COUNT_EXPONENTS = {"none": 0.0, "sqrt": -0.5, "raw": -1.0}
#: Logits held at once. 16 MiB in float32: large enough for a fast product, small beside the rows.
TILE = 2**22


def info_nce(
    rows: Tensor,
    positive: Tensor,
    group: Tensor,
    excluded: Tensor | None = None,
    *,
    temperature: float,
    rarity: str = "none",
    balance: str = "none",
    tile: int = TILE,
) -> Tensor:
    r"""Multi-positive InfoNCE (SupCon's "out" form, arXiv 2004.11362) over the rows of all ranks.

    With unit rows :math:`z_i`, :math:`s_{ij} = z_i^\top z_j / T`, positives :math:`P(i)` and the rows :math:`D(i)`
    that the anchor meets, neither of which holds i itself:

    .. math:: L = \frac{1}{\sum_i u_i} \sum_i u_i \Big( \log \sum_{j \in D(i)} w_{ij} \exp s_{ij}
                  - \frac{1}{|P(i)|} \sum_{j \in P(i)} s_{ij} \Big)

    P(i) are the rows with i's ``positive`` key. D(i) are the rows of i's ``group`` and all of P(i), less those that
    share i's ``excluded`` key without being positive. A row without a positive is no anchor (:math:`u_i = 0`), but
    others meet it. No tensor of size N x N is ever made: logits are recomputed for the gradient, which is closed-form.

    Args:
        rows: (n, D), of this rank; they need not be normalised. All of them count.
        positive, group, excluded: (n, any) integers; keys are equal where all their columns are.
        temperature: T, larger than 0.
        rarity: :math:`u_i` is 1 ("none"), or the inverse of the size of i's class of positives ("raw") or of its root
            ("sqrt").
        balance: :math:`w_{ij}` is 1 ("none"), or the inverse of the number of rows of j's class in D(i) ("raw") or of
            its root ("sqrt"), so that no class fills the denominator by its size (BCL, arXiv 2207.09052).
        tile: logits held at once.

    Returns:
        A scalar, the same on every rank; 0 where there is no anchor. Gradients are those of the sum over ranks, so that
        their mean over ranks, as DDP takes it, is the gradient of one process on the joined rows.
    """
    with torch.autocast(rows.device.type, enabled=False):
        z = F.normalize(at_least_float32(rows), dim=1)
        pairs = _pairs(z, positive, group, excluded, COUNT_EXPONENTS[rarity], COUNT_EXPONENTS[balance], tile)
        return _TiledInfoNCE.apply(z, pairs, temperature)


@dataclass(frozen=True)
class _Pairs:
    """Who meets whom: the rows of all ranks, sorted so that those that meet stand together in one block."""

    sizes: list[int]  # rows of each rank
    order: Tensor  # (N,) sorted row -> gathered row
    own: Tensor  # (n,) this rank's rows among the sorted ones, ascending
    local: Tensor  # (n,) the same rows in the order in which the caller gave them
    positive: Tensor  # (N,) id of the class of positives
    group: Tensor  # (N,)
    excluded: Tensor | None  # (N,)
    anchor: Tensor  # (N,) u_i, summing to 1
    positives: Tensor  # (N,) |P(i)|, at least 1 to divide by
    log_weights: tuple[Tensor, Tensor] | None  # (N,) log w_ij of column j, for i of its class and for i of another
    grouped: bool  # not everyone meets everyone
    tiles: list[tuple[slice, slice]]  # (among ``own``, among the sorted rows)

    def sort(self, own: Tensor) -> Tensor:
        """(n, ...) in the caller's order to (N, ...) of all ranks, sorted."""
        return all_gather_rows(own, self.sizes)[self.order]

    def unsort(self, own: Tensor) -> Tensor:
        """(n, ...) in the order of ``own`` to the caller's."""
        return torch.empty_like(own).index_copy_(0, self.local, own)

    def logits(self, z: Tensor, tile: tuple[slice, slice], temperature: float) -> tuple[Tensor, Tensor | None]:
        """s of a tile, -inf where the two do not meet; and where they are of one class, if that matters."""
        rows, columns = self.own[tile[0]], tile[1]
        s = (z[rows] / temperature) @ z[columns].T
        same = None
        if self.grouped or self.excluded is not None or self.log_weights:
            same = self.positive[rows, None] == self.positive[columns]
        if self.grouped or self.excluded is not None:
            apart = self.group[rows, None] != self.group[columns]
            if self.excluded is not None:
                apart |= self.excluded[rows, None] == self.excluded[columns]
            s.masked_fill_(apart & ~same, -torch.inf)
        s[torch.arange(len(rows), device=s.device), rows - columns.start] = -torch.inf
        return s, same

    def weighted(self, s: Tensor, same: Tensor | None, tile: tuple[slice, slice], backwards: bool = False) -> Tensor:
        """s_ij + log w_ij, or s_ij + log w_ji."""
        if not self.log_weights:
            return s
        own, other = self.log_weights
        rows = self.own[tile[0]]
        return s + torch.where(same, own[rows, None], other[rows, None] if backwards else other[tile[1]])


def _identify(*keys: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) ids of equal keys, counted from 0, and (N,) how many rows have the key."""
    _, ids, counts = torch.unique(torch.cat(keys, 1), dim=0, return_inverse=True, return_counts=True)
    return ids, counts[ids]


def _pairs(
    z: Tensor, positive: Tensor, group: Tensor, excluded: Tensor | None, rarity: float, balance: float, tile: int
) -> _Pairs:
    sizes = gather_row_counts(len(z), z.device)
    start = sum(sizes[: get_rank()])
    positive, group = all_gather_rows(positive, sizes), all_gather_rows(group, sizes)
    ids, count = _identify(positive)
    group_ids, _ = _identify(group)
    _, count_in_group = _identify(positive, group)
    # Where positives reach beyond the group, everything is one block.
    block = group_ids if torch.equal(count, count_in_group) else torch.zeros_like(group_ids)
    order = block.argsort(stable=True)
    mine = (order >= start) & (order < start + len(z))
    own = mine.nonzero()[:, 0]
    anchor = (count > 1) * count.to(z.dtype) ** rarity
    total = anchor.sum()
    weights = None
    if balance:
        weights = tuple(balance * n.clamp(min=1).to(z.dtype).log()[order] for n in (count - 1, count_in_group))
    return _Pairs(
        sizes=sizes,
        order=order,
        own=own,
        local=order[own] - start,
        positive=ids[order],
        group=group_ids[order],
        excluded=None if excluded is None else _identify(all_gather_rows(excluded, sizes))[0][order],
        anchor=(anchor / torch.where(total > 0, total, 1))[order],
        positives=(count - 1).clamp(min=1)[order],
        log_weights=weights,
        grouped=len(group_ids) > 0 and bool(group_ids.max() > 0),
        tiles=_tiles(block[order], own, tile),
    )


def _tiles(block: Tensor, own: Tensor, tile: int) -> list[tuple[slice, slice]]:
    """Chunks of this rank's rows, each with the columns of the blocks that it touches."""
    if len(own) == 0:
        return []
    mine = block[own]
    first, last = torch.searchsorted(block, mine), torch.searchsorted(block, mine, right=True)
    widest = int((last - first).max())
    # Chunks of several small blocks waste their corners.
    height = max(1, min(tile // widest, -(-widest // get_world_size())))
    starts = torch.arange(0, len(own), height, device=own.device)
    ends = (starts + height).clamp(max=len(own))
    bounds = torch.stack((starts, ends, first[starts], last[ends - 1]), 1).tolist()
    return [(slice(a, b), slice(c, d)) for a, b, c, d in bounds]


class _TiledInfoNCE(torch.autograd.Function):
    """The loss of unit rows. Ranks talk in the forward pass only; each holds the whole gradient of its own rows."""

    @staticmethod
    def forward(ctx: Any, own_z: Tensor, pairs: _Pairs, temperature: float) -> Tensor:
        z = pairs.sort(own_z)
        log_partition = z.new_empty(len(pairs.own))
        for tile in pairs.tiles:
            log_partition[tile[0]] = pairs.weighted(*pairs.logits(z, tile, temperature), tile).logsumexp(1)
        log_partition.masked_fill_(log_partition.isneginf(), 0)  # who meets nobody is no anchor
        attraction = (z[pairs.own] * _others(z, pairs)).sum(1) / temperature
        loss = all_reduce_sum(pairs.anchor[pairs.own] @ (log_partition - attraction))
        ctx.save_for_backward(z, pairs.sort(pairs.unsort(log_partition)))
        ctx.pairs, ctx.temperature = pairs, temperature
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        r"""With q_ij = w_ij exp(s_ij - log_partition_i), and p_ij = 1/\|P(i)\| on P(i), which is symmetric:

        T dL/dz_i = \sum_j (u_i q_ij + u_j q_ji) z_j - 2 u_i \sum_j p_ij z_j
        """
        z, log_partition = ctx.saved_tensors
        pairs, anchor = ctx.pairs, ctx.pairs.anchor
        own_gradient = -2 * anchor[pairs.own, None] * _others(z, pairs)
        with torch.autocast(z.device.type, enabled=False):
            for tile in pairs.tiles:
                rows, columns = pairs.own[tile[0]], tile[1]
                s, same = pairs.logits(z, tile, ctx.temperature)
                pull = (pairs.weighted(s, same, tile) - log_partition[rows, None]).exp_().mul_(anchor[rows, None])
                back = pairs.weighted(s, same, tile, backwards=True)
                back = back.sub_(log_partition[columns]).exp_().mul_(anchor[columns])
                own_gradient[tile[0]] += back.add_(pull) @ z[columns]
        return pairs.unsort(own_gradient) * (gradient * get_world_size() / ctx.temperature), None, None


def _others(z: Tensor, pairs: _Pairs) -> Tensor:
    """(n, D) mean of the positives of each own row: a class sum less the row itself, so that no pair is visited."""
    classes = pairs.positive[pairs.own]
    sums = z.new_zeros((len(z), z.shape[1])).index_add_(0, pairs.positive, z)
    return (sums[classes] - z[pairs.own]) / pairs.positives[pairs.own, None]
