"""The core of every InfoNCE of the package: exact, computed tile by tile, in memory linear in the number of rows.

All shapes follow from the shapes of the arguments, never from their values, so a call on one process does not make the
host wait for the device. Rows that do not count stay in place and are masked.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
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

#: Exponent of the class size for each choice of a class weight.
CLASS_WEIGHTS = {"none": 0.0, "inverse_sqrt": -0.5, "inverse": -1.0}
#: Logits held at once. 16 MiB in float32: large enough for a fast matrix product, small beside the rows.
TILE = 2**22


def info_nce(
    features: Tensor,
    classes: Tensor,
    valid_mask: Tensor | None = None,
    *,
    temperature: float,
    group: Tensor | None = None,
    excluded: Tensor | None = None,
    anchor_class_weight: str = "none",
    denominator_class_weight: str = "none",
    gather: bool = True,
    tile: int = TILE,
) -> Tensor:
    r"""Multi-positive InfoNCE (the "out" form of SupCon, arXiv 2004.11362) within blocks of rows.

    With unit rows :math:`z_i`, :math:`s_{ij} = z_i^\top z_j / T`, positives :math:`P(i)` and denominator :math:`D(i)`,
    neither of which contains i itself:

    .. math:: L = \frac{1}{\sum_i u_i} \sum_i u_i \Big( \log \sum_{j \in D(i)} w_{ij} \exp s_{ij}
                  - \frac{1}{|P(i)|} \sum_{j \in P(i)} s_{ij} \Big)

    P(i) are the other rows of i's block and class. D(i) are the other rows of i's block; with ``group``, those of i's
    group and all of P(i); with ``excluded``, without the rows that share i's value and are not in P(i). A row without a
    positive is not an anchor (:math:`u_i = 0`), but it is in the denominator of others. No tensor contains all pairs:
    the backward pass computes the logits again, and the gradient is in closed form.

    Args:
        features: (G, M, D), G blocks of M rows on this rank; they need not be normalised.
        classes: (G, M) integers; rows of one block with equal values are positives of each other.
        valid_mask: (G, M) bool; a row that is False takes no part, whatever its features are. Default: all True.
        temperature: T, larger than 0.
        group, excluded: (G, M) integers, see above.
        anchor_class_weight: :math:`u_i` is 1 ("none"), or the inverse of the size of i's class ("inverse") or of its
            square root ("inverse_sqrt").
        denominator_class_weight: :math:`w_{ij}` is 1 ("none"), or the inverse of the number of rows of j's class in
            D(i) ("inverse") or of its square root ("inverse_sqrt"), as in BCL (arXiv 2207.09052).
        gather: a block continues on the other ranks, which then have the same G; otherwise every rank has its own
            blocks.
        tile: number of logits held at once.

    Returns:
        A scalar, the same on every rank; 0 where there is no anchor. Gradients are those of the sum over ranks, so that
        their mean over ranks, which DDP computes, is the gradient of one process on the joined rows.
    """
    with torch.autocast(features.device.type, enabled=False):
        z = _unit_rows(features, valid_mask)
        exchange = _Exchange.of(z) if gather else _Exchange([z.shape[1]], 0)
        keys = _Keys(classes, group, excluded, valid_mask).gathered(exchange)
        exponents = CLASS_WEIGHTS[anchor_class_weight], CLASS_WEIGHTS[denominator_class_weight]
        return _TiledInfoNCE.apply(z, _blocks(exchange, keys, *exponents, z.dtype), temperature, tile)


def _unit_rows(features: Tensor, valid_mask: Tensor | None) -> Tensor:
    """Normalise the rows in float32 or better; rows that are not valid become 0."""
    rows = at_least_float32(features)
    if valid_mask is not None:
        rows = torch.where(valid_mask[..., None], rows, 0)  # before NaN or inf can reach a gradient
    return F.normalize(rows, dim=-1)


@dataclass(frozen=True)
class _Exchange:
    """How the rows of a block are spread over ranks."""

    sizes: list[int]  #: rows of each rank per block
    start: int  #: index of this rank's first row among all rows of a block

    @classmethod
    def of(cls, z: Tensor) -> "_Exchange":
        """Ask all ranks for their number of rows. With several ranks, the host waits here."""
        sizes = gather_row_counts(z.shape[1], z.device)
        return cls(sizes, sum(sizes[: get_rank()]))

    def gather(self, own: Tensor) -> Tensor:
        """(G, m, ...) of this rank to (G, M, ...) of all ranks, without gradient."""
        return all_gather_rows(own.transpose(0, 1), self.sizes).transpose(0, 1)


@dataclass(frozen=True)
class _Keys:
    """What decides which rows meet, (G, M) each."""

    classes: Tensor
    group: Tensor | None
    excluded: Tensor | None
    valid_mask: Tensor | None

    def gathered(self, exchange: _Exchange) -> "_Keys":
        """The keys of the rows of all ranks."""
        optional = (self.group, self.excluded, self.valid_mask)
        return _Keys(exchange.gather(self.classes), *(None if x is None else exchange.gather(x) for x in optional))


Tile = tuple[slice, slice]  # blocks, and rows of this rank


@dataclass(frozen=True)
class _Blocks:
    """The rows of all ranks in G blocks of M, and which of them meet."""

    exchange: _Exchange
    keys: _Keys
    anchor: Tensor  #: (G, M) u_i / sum of u over all ranks
    positives: Tensor  #: (G, M) |P(i)|, at least 1 to divide by
    log_weights: tuple[Tensor, Tensor] | None  #: (G, M) log w_ij of column j, for i of its class and for i of another

    def own(self, rows: slice = slice(None)) -> slice:
        """Indices in a block of this rank's rows, or of some of them."""
        start, size = self.exchange.start, self.exchange.sizes[get_rank() if len(self.exchange.sizes) > 1 else 0]
        first, last, _ = rows.indices(size)
        return slice(start + first, start + last)

    def tiles(self, rows: int, limit: int) -> Iterator[Tile]:
        """Parts of this rank's rows with about ``limit`` logits each: several small blocks, or part of a large one."""
        blocks, columns = self.keys.classes.shape
        height = max(1, min(rows, limit // max(columns, 1)))
        several = max(1, limit // max(height * columns, 1))
        for block in range(0, blocks, several):
            for row in range(0, rows, height):
                yield slice(block, block + several), slice(row, row + height)

    def logits(self, z: Tensor, tile: Tile, temperature: float) -> tuple[Tensor, Tensor | None]:
        """s (g, r, M) of a tile, -inf where the rows do not meet; and where they are of one class, if it matters."""
        blocks, own, keys = tile[0], self.own(tile[1]), self.keys
        rows, columns = z[blocks, own] / temperature, z[blocks].mT
        if keys.valid_mask is None:
            s = rows @ columns
        else:  # a bias of the product is cheaper than a mask of the tile
            bias = torch.where(keys.valid_mask[blocks, None], 0.0, -torch.inf).to(z.dtype)
            s = torch.baddbmm(bias, rows, columns)
        same, apart = None, None
        if keys.group is not None or keys.excluded is not None or self.log_weights:
            same = _equal(keys.classes, blocks, own)
        if keys.group is not None:
            apart = ~_equal(keys.group, blocks, own)
        if keys.excluded is not None:
            apart = _equal(keys.excluded, blocks, own) | (False if apart is None else apart)
        if apart is not None and same is not None:
            s.masked_fill_(apart & ~same, -torch.inf)
        s[:, :, own].diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        return s, same

    def weighted(self, s: Tensor, same: Tensor | None, tile: Tile, backwards: bool = False) -> Tensor:
        """s_ij + log w_ij, or s_ij + log w_ji."""
        if self.log_weights is None or same is None:
            return s
        blocks, own = tile[0], self.own(tile[1])
        of_class, of_others = (weight[blocks] for weight in self.log_weights)
        others = of_others[:, own, None] if backwards else of_others[:, None]
        return s + torch.where(same, of_class[:, own, None], others)

    def mean_of_positives(self, z: Tensor) -> Tensor:
        """(G, m, D) mean over P(i) for each row of this rank: a class sum minus the row itself, without any pair."""
        blocks, columns = self.keys.classes.shape
        index = self.keys.classes + columns * torch.arange(blocks, device=z.device)[:, None]
        sums = z.new_zeros((blocks * columns, z.shape[-1])).index_add_(0, index.flatten(), z.flatten(0, 1))
        own = self.own()
        return (sums[index[:, own]] - z[:, own]) / self.positives[:, own, None]


def _equal(keys: Tensor, blocks: slice, own: slice) -> Tensor:
    return keys[blocks, own, None] == keys[blocks, None]


def _blocks(
    exchange: _Exchange, keys: _Keys, anchor_exponent: float, denominator_exponent: float, dtype: torch.dtype
) -> _Blocks:
    classes = class_ids(keys.classes)
    valid = torch.ones_like(classes, dtype=dtype) if keys.valid_mask is None else keys.valid_mask.to(dtype)
    size = class_sizes(classes, valid)
    anchor = valid * (size > 1) * size.clamp(min=1) ** anchor_exponent
    total = anchor.sum()
    if len(exchange.sizes) < get_world_size():  # the blocks of other ranks are not among these
        total = all_reduce_sum(total)
    weights = None
    if denominator_exponent:
        in_group = size if keys.group is None else class_sizes(join_ids(classes, class_ids(keys.group)), valid)
        of_class, of_others = (denominator_exponent * n.clamp(min=1).log() for n in (size - 1, in_group))
        weights = of_class, of_others
    return _Blocks(
        exchange=exchange,
        keys=replace(keys, classes=classes),
        anchor=anchor / torch.where(total > 0, total, 1),
        positives=(size - 1).clamp(min=1),
        log_weights=weights,
    )


def class_ids(keys: Tensor) -> Tensor:
    """Integers (G, M) to ids in [0, M) that are equal in a block where the integers are."""
    keys = keys.contiguous()
    return torch.searchsorted(keys.sort(dim=1).values, keys)


def join_ids(first: Tensor, second: Tensor) -> Tensor:
    """Ids (G, M) in [0, M) that are equal where both of two such ids are."""
    return class_ids(first * first.shape[1] + second)


def class_sizes(ids: Tensor, valid: Tensor) -> Tensor:
    """(G, M): the number of valid rows in the class of each row."""
    return torch.zeros_like(valid).scatter_add_(1, ids, valid).gather(1, ids)


class _TiledInfoNCE(torch.autograd.Function):
    """The loss of unit rows. Ranks communicate in the forward pass only; each holds the gradient of its own rows."""

    @staticmethod
    def forward(ctx: Any, own_z: Tensor, blocks: _Blocks, temperature: float, limit: int) -> Tensor:
        z = blocks.exchange.gather(own_z)
        log_partition = own_z.new_empty(own_z.shape[:2])
        for tile in blocks.tiles(own_z.shape[1], limit):
            log_partition[tile] = blocks.weighted(*blocks.logits(z, tile, temperature), tile).logsumexp(2)
        log_partition.masked_fill_(log_partition.isneginf(), 0)  # a row that meets no other row is not an anchor
        attraction = (own_z * blocks.mean_of_positives(z)).sum(2) / temperature
        loss = all_reduce_sum((blocks.anchor[:, blocks.own()] * (log_partition - attraction)).sum())
        ctx.save_for_backward(z, blocks.exchange.gather(log_partition))
        ctx.blocks, ctx.temperature, ctx.limit = blocks, temperature, limit
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        r"""With q_ij = w_ij exp(s_ij - log_partition_i), and p_ij = 1/\|P(i)\| on P(i), which is symmetric:

        T dL/dz_i = \sum_j (u_i q_ij + u_j q_ji) z_j - 2 u_i \sum_j p_ij z_j
        """
        z, log_partition = ctx.saved_tensors
        blocks, anchor = ctx.blocks, ctx.blocks.anchor
        own_gradient = -2 * anchor[:, blocks.own(), None] * blocks.mean_of_positives(z)
        with torch.autocast(z.device.type, enabled=False):
            for tile in blocks.tiles(own_gradient.shape[1], ctx.limit):
                block, own = tile[0], blocks.own(tile[1])
                s, same = blocks.logits(z, tile, ctx.temperature)
                pull = blocks.weighted(s, same, tile) - log_partition[block, own, None]
                pull = pull.exp_().mul_(anchor[block, own, None])
                back = blocks.weighted(s, same, tile, backwards=True)
                back = back.sub_(log_partition[block, None]).exp_().mul_(anchor[block, None])
                own_gradient[tile] += back.add_(pull) @ z[block]
        if blocks.keys.valid_mask is not None:
            own_gradient.masked_fill_(~blocks.keys.valid_mask[:, blocks.own(), None], 0)
        return own_gradient * (gradient * get_world_size() / ctx.temperature), None, None, None
