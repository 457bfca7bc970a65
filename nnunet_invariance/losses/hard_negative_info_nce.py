"""InfoNCE between places of two overlapping views, against negatives that are hard and diverse."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnunet_invariance.common.precision import at_least_float32


@dataclass(frozen=True)
class SampledIndices:
    """What is drawn for one step before any feature is known. Indices count a sample's keys, both views joined.

    Attributes:
        query, positive: (B, N) index of each query and of its counterpart.
        counts: (B, N) bool, False where a sample has fewer than N queries.
        pool: (B, M) index of the keys among which hard negatives are looked for.
        ranks: (B, N, K) which of the hardest are taken, 0 the hardest.
        others: (B, G) index into the keys of all samples, none of them of the sample itself.
    """

    query: Tensor
    positive: Tensor
    counts: Tensor
    pool: Tensor
    ranks: Tensor
    others: Tensor


def take(keys: Tensor, index: Tensor) -> Tensor:
    """Rows of each sample: keys (B, M, ...), index (B, *n) to (B, *n, ...)."""
    sample = torch.arange(len(keys), device=keys.device).view(-1, *[1] * (index.ndim - 1))
    return keys[sample, index]


class HardNegativeInfoNCE(nn.Module):
    r"""Places of one view find themselves in the other (SAM, arXiv 2012.02383); distances are in cells of the map.

    .. math:: L = -\log \frac{\exp(s^+ / T)}{\exp(s^+ / T) + \sum_{k} \exp(s^-_k / T)}

    :math:`s` are cosines. Negatives are drawn uniformly from the ``hardest`` keys of both views that are farther than
    ``ignore`` from the query and not its positive; a guide (the coarse embedding) may add to the hardness, not to the
    loss. ``others`` keys of other samples join them. A uniform guess has log(1 + K + G).

    Args:
        distance: a query counts if its counterpart is nearer than this, in cells.
        ignore: negatives are at least this far, in cells.
        queries: of each view; ``0``: every cell.
        pool: at most so many keys of a sample are looked at for negatives.
        hardest, negatives: as above, K at most ``negatives``.
        others: G.
        temperature: T.
    """

    def __init__(
        self,
        distance: float,
        ignore: float,
        queries: int,
        hardest: int,
        negatives: int,
        others: int = 0,
        pool: int = 73_728,
        temperature: float = 0.5,
    ) -> None:
        super().__init__()
        self.distance, self.ignore, self.queries, self.pool = distance, ignore, queries, pool
        self.hardest, self.negatives, self.others, self.temperature = hardest, negatives, others, temperature

    @torch.no_grad()
    def draw(self, position: Tensor, valid: Tensor, generator: torch.Generator) -> SampledIndices:
        """Queries with their counterparts, and all that is random in the choice of negatives.

        Where a sample's views share no place, its queries are cells of any place that are their own positives.

        Shape:
            position: (B, M, 3) in cells, the first view's M / 2 keys first. valid: (B, M) bool, content of the image.
        """
        half = position.shape[1] // 2
        first, second = (position[:, :half], valid[:, :half]), (position[:, half:], valid[:, half:])
        query, positive, counts = (
            torch.cat(parts, 1)
            for parts in zip(
                self._counterparts(*first, *second, 0, half, generator),
                self._counterparts(*second, *first, half, 0, generator),
                strict=True,
            )
        )
        apart = ~counts.any(1, keepdim=True)
        anywhere = _drawn(valid, query.shape[1], generator)
        query, positive = torch.where(apart, anywhere, query), torch.where(apart, anywhere, positive)
        counts = torch.where(apart, take(valid, anywhere), counts)
        pool = _drawn(valid, min(self.pool, 2 * half), generator)
        hardest = min(self.hardest, pool.shape[1])
        ranks = _uniform((*query.shape, hardest), generator).topk(min(self.negatives, hardest), -1).indices
        return SampledIndices(query, positive, counts, pool, ranks, self._others(*valid.shape, generator))

    def forward(
        self, keys: Tensor, position: Tensor, valid: Tensor, draws: SampledIndices, guide: Tensor | None = None
    ) -> Tensor:
        """The loss in float32 or better: a mean over the queries of a sample, then over samples.

        Shape:
            keys, guide: (B, M, D) unit vectors of both views. position, valid: as in :meth:`draw`.
            Returns a scalar; 0 where no query counts.
        """
        with torch.autocast(keys.device.type, enabled=False):
            keys = at_least_float32(keys)
            query, pool = take(keys, draws.query), take(keys, draws.pool)
            similarity = query @ pool.mT
            index, allowed = self._hard_negatives(similarity.detach(), position, valid, draws, guide)
            positive = (query * take(keys, draws.positive)).sum(-1, keepdim=True)
            other = query @ keys.flatten(0, 1)[draws.others].mT
            negative = similarity.gather(-1, index).masked_fill(~allowed, -torch.inf)
            other = other.masked_fill(~valid.flatten()[draws.others][:, None], -torch.inf)
            logits = torch.cat((positive, negative, other), -1) / self.temperature
            loss = logits.logsumexp(-1) - logits[..., 0]
        counts = draws.counts.to(loss.dtype)
        return ((loss * counts).sum(1) / counts.sum(1).clamp(min=1)).mean()

    @torch.no_grad()
    def _hard_negatives(
        self, score: Tensor, position: Tensor, valid: Tensor, draws: SampledIndices, guide: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Indices (B, N, K) into the pool, and which of them may be used; ``score`` (B, N, M) are the cosines."""
        if guide is not None:
            score = score + take(guide, draws.query) @ take(guide, draws.pool).mT
        near = torch.cdist(take(position, draws.query), take(position, draws.pool)) < self.ignore
        itself = draws.positive[..., None] == draws.pool[:, None]
        score = score.masked_fill(near | itself | ~take(valid, draws.pool)[:, None], -torch.inf)
        top = score.topk(min(self.hardest, score.shape[-1]), -1)
        return top.indices.gather(-1, draws.ranks), top.values.gather(-1, draws.ranks) > -torch.inf

    def _counterparts(
        self, position: Tensor, valid: Tensor, target: Tensor, valid_target: Tensor, start: int, start_target: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Queries of one view whose nearest key of the other view is near enough: indices, those of the keys, counts.

        Twice as many candidates are drawn as queries are wanted, from the box that the other view fills.
        """
        queries = min(self.queries or position.shape[1], position.shape[1])
        shown = valid_target[..., None]
        low = target.masked_fill(~shown, torch.inf).amin(1, keepdim=True) - self.distance
        high = target.masked_fill(~shown, -torch.inf).amax(1, keepdim=True) + self.distance
        overlap = valid & ((position >= low) & (position <= high)).all(-1)
        candidates = _drawn(overlap, min(2 * queries, position.shape[1]), generator)
        distances = torch.cdist(take(position, candidates), target).masked_fill(~valid_target[:, None], torch.inf)
        distance, nearest = distances.min(-1)
        found = (distance < self.distance) & take(overlap, candidates)
        kept = found.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :queries]
        return candidates.gather(1, kept) + start, nearest.gather(1, kept) + start_target, found.gather(1, kept)

    def _others(self, samples: int, keys: int, generator: torch.Generator) -> Tensor:
        count = self.others if samples > 1 else 0
        index = (_uniform((samples, count), generator) * ((samples - 1) * keys)).long()
        own = torch.arange(samples, device=index.device)[:, None] * keys
        return index + keys * (index >= own)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _drawn(allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different indices (B, count) in random order, those where ``allowed`` (B, M) is True first."""
    return _uniform(tuple(allowed.shape), generator).masked_fill(~allowed, -1).topk(count, 1).indices
