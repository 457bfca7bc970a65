"""InfoNCE between cells of two overlapping views, with hard and diverse negatives."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.losses.base import (
    Loss,
    check_count,
    check_dimensions,
    check_number,
    check_shape,
    check_temperature,
)


@dataclass(frozen=True)
class SampledIndices:
    """Everything random in one step of :class:`HardNegativeInfoNCE`. Indices count the keys of both views of a sample.

    Attributes:
        query, positive: (B, N) index of each query and of its counterpart.
        valid_mask: (B, N) bool, False where a sample has fewer than N queries.
        candidates: (B, M) index of the keys among which the hard negatives are chosen.
        ranks: (B, N, K) which of the hardest candidates are negatives; 0 is the hardest.
        cross_sample: (B, G) index into the keys of all samples, none of them of the sample itself.
    """

    query: Tensor
    positive: Tensor
    valid_mask: Tensor
    candidates: Tensor
    ranks: Tensor
    cross_sample: Tensor


def batched_gather(values: Tensor, index: Tensor) -> Tensor:
    """Rows of each sample: values (B, M, ...) and index (B, *n) to (B, *n, ...).

    >>> batched_gather(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1], [0]]))
    tensor([[2],
            [3]])
    """
    sample = torch.arange(len(values), device=values.device).view(-1, *[1] * (index.ndim - 1))
    return values[sample, index]


class HardNegativeInfoNCE(Loss):
    r"""A cell of one view has to find its counterpart in the other view (SAM, arXiv 2012.02383).

    .. math:: L = -\log \frac{\exp(s^+ / T)}{\exp(s^+ / T) + \sum_{k} \exp(s^-_k / T)}

    :math:`s` are cosines; distances are in cells of the map. The negatives of a query are sampled uniformly from the
    ``num_hardest`` keys of both views that are at least ``min_negative_distance`` away and are not its positive. A
    guide (the coarse embedding) may add to the hardness, but not to the loss. Keys of other samples join them. If all
    keys are equal, the loss is log(1 + K + G).

    >>> loss = HardNegativeInfoNCE(0.5, 1.5, num_queries=0, num_hardest=4, num_negatives=2)
    >>> position = torch.arange(6.0)[None, :, None].repeat(1, 2, 3)  # both views show the same six cells
    >>> valid, keys = torch.ones(1, 12, dtype=torch.bool), torch.ones(1, 12, 1)
    >>> indices = loss.sample_indices(position, valid, torch.Generator().manual_seed(0))
    >>> loss(keys, position, valid, indices)  # log(1 + 2)
    tensor(1.0986)

    Args:
        max_positive_distance: a query counts if its counterpart is nearer than this, in cells.
        min_negative_distance: negatives are at least this far away, in cells.
        num_queries: queries of each view; 0 takes every cell.
        num_hardest: size of the set of hardest keys.
        num_negatives: K, the negatives sampled from that set.
        num_cross_sample: G, the negatives sampled from other samples.
        max_candidates: hard negatives are chosen among at most this many keys of a sample.
        temperature: T, larger than 0.

    Raises:
        OptionError: a value is out of range.
    """

    def __init__(
        self,
        max_positive_distance: float,
        min_negative_distance: float,
        num_queries: int,
        num_hardest: int,
        num_negatives: int,
        num_cross_sample: int = 0,
        max_candidates: int = 73_728,
        temperature: float = 0.5,
    ) -> None:
        super().__init__()
        self.max_positive_distance = check_number("max_positive_distance", max_positive_distance, 0)
        self.min_negative_distance = check_number("min_negative_distance", min_negative_distance, 0)
        self.num_queries = check_count("num_queries", num_queries, 0)
        self.num_hardest = check_count("num_hardest", num_hardest, 1)
        self.num_negatives = check_count("num_negatives", num_negatives, 1)
        self.num_cross_sample = check_count("num_cross_sample", num_cross_sample, 0)
        self.max_candidates = check_count("max_candidates", max_candidates, 1)
        self.temperature = check_temperature(temperature)

    @torch.no_grad()
    def sample_indices(self, position: Tensor, valid_mask: Tensor, generator: torch.Generator) -> SampledIndices:
        """Queries with their counterparts, and everything random in the choice of negatives.

        If the views of a sample do not overlap, its queries are any cells, each its own positive.

        Shape:
            position: (B, M, 3) in cells, the M / 2 keys of the first view first. valid_mask: (B, M) bool, whether the
            cell shows image content.

        Raises:
            ShapeError: the shapes do not agree.
        """
        check_dimensions("position", position, 3, "(B, M, 3)", most=3)
        check_shape("valid_mask", valid_mask, position.shape[:2], "(B, M) of 'position'")
        half = position.shape[1] // 2
        first, second = (position[:, :half], valid_mask[:, :half]), (position[:, half:], valid_mask[:, half:])
        query, positive, valid = (
            torch.cat(parts, 1)
            for parts in zip(
                self._counterparts(*first, *second, 0, half, generator),
                self._counterparts(*second, *first, half, 0, generator),
                strict=True,
            )
        )
        apart = ~valid.any(1, keepdim=True)
        anywhere = _random_indices(valid_mask, query.shape[1], generator)
        query, positive = torch.where(apart, anywhere, query), torch.where(apart, anywhere, positive)
        valid = torch.where(apart, batched_gather(valid_mask, anywhere), valid)
        candidates = _random_indices(valid_mask, min(self.max_candidates, 2 * half), generator)
        hardest = min(self.num_hardest, candidates.shape[1])
        ranks = _uniform((*query.shape, hardest), generator).topk(min(self.num_negatives, hardest), -1).indices
        cross_sample = self._cross_sample(len(valid_mask), valid_mask.shape[1], generator)
        return SampledIndices(query, positive, valid, candidates, ranks, cross_sample)

    def forward(
        self,
        keys: Tensor,
        position: Tensor,
        valid_mask: Tensor,
        indices: SampledIndices,
        guide: Tensor | None = None,
    ) -> Tensor:
        """The loss in float32 or better, also under autocast: a mean over the queries of a sample, then over samples.

        Shape:
            keys, guide: (B, M, D) unit vectors of both views; the guide gets no gradient. position, valid_mask: as in
            :meth:`sample_indices`.
            Returns a scalar; 0 where no query is valid.

        Raises:
            ShapeError: the shapes do not agree.
        """
        check_dimensions("keys", keys, 3, "(B, M, D)", most=3)
        check_shape("position", position, (*keys.shape[:2], 3), "(B, M, 3) with B and M of 'keys'")
        check_shape("valid_mask", valid_mask, keys.shape[:2], "(B, M) of 'keys'")
        if guide is not None:
            check_shape("guide", guide, (*keys.shape[:2], *guide.shape[2:]), "(B, M, D) with B and M of 'keys'")
        with torch.autocast(keys.device.type, enabled=False):
            keys = at_least_float32(keys)
            query, candidates = batched_gather(keys, indices.query), batched_gather(keys, indices.candidates)
            similarity = query @ candidates.mT
            index, allowed = self._hard_negatives(similarity.detach(), position, valid_mask, indices, guide)
            positive = (query * batched_gather(keys, indices.positive)).sum(-1, keepdim=True)
            other = query @ keys.flatten(0, 1)[indices.cross_sample].mT
            negative = similarity.gather(-1, index).masked_fill(~allowed, -torch.inf)
            other = other.masked_fill(~valid_mask.flatten()[indices.cross_sample][:, None], -torch.inf)
            logits = torch.cat((positive, negative, other), -1) / self.temperature
            loss = logits.logsumexp(-1) - logits[..., 0]
        valid = indices.valid_mask.to(loss.dtype)
        return ((loss * valid).sum(1) / valid.sum(1).clamp(min=1)).mean()

    @torch.no_grad()
    def _hard_negatives(
        self, score: Tensor, position: Tensor, valid_mask: Tensor, indices: SampledIndices, guide: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Indices (B, N, K) into the candidates, and which may be used; ``score`` (B, N, M) are the cosines."""
        if guide is not None:
            guide = at_least_float32(guide)
            score = score + batched_gather(guide, indices.query) @ batched_gather(guide, indices.candidates).mT
        query, candidates = (batched_gather(position, index) for index in (indices.query, indices.candidates))
        near = _distances(query, candidates) < self.min_negative_distance
        itself = indices.positive[..., None] == indices.candidates[:, None]
        invalid = ~batched_gather(valid_mask, indices.candidates)[:, None]
        score = score.masked_fill(near | itself | invalid, -torch.inf)
        top = score.topk(min(self.num_hardest, score.shape[-1]), -1)
        return top.indices.gather(-1, indices.ranks), top.values.gather(-1, indices.ranks) > -torch.inf

    def _counterparts(
        self, position: Tensor, valid: Tensor, target: Tensor, valid_target: Tensor, start: int, start_target: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Queries of one view whose nearest key of the other view is near enough: indices, those of the keys, and mask.

        Twice as many candidates are sampled as queries are wanted, from the box that the other view covers.
        """
        queries = min(self.num_queries or position.shape[1], position.shape[1])
        low = target.masked_fill(~valid_target[..., None], torch.inf).amin(1, keepdim=True)
        high = target.masked_fill(~valid_target[..., None], -torch.inf).amax(1, keepdim=True)
        margin = self.max_positive_distance
        overlap = valid & ((position >= low - margin) & (position <= high + margin)).all(-1)
        candidates = _random_indices(overlap, min(2 * queries, position.shape[1]), generator)
        distances = _distances(batched_gather(position, candidates), target)
        distance, nearest = distances.masked_fill(~valid_target[:, None], torch.inf).min(-1)
        found = (distance < self.max_positive_distance) & batched_gather(overlap, candidates)
        kept = found.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :queries]
        return candidates.gather(1, kept) + start, nearest.gather(1, kept) + start_target, found.gather(1, kept)

    def _cross_sample(self, samples: int, keys: int, generator: torch.Generator) -> Tensor:
        number = self.num_cross_sample if samples > 1 else 0
        index = (_uniform((samples, number), generator) * ((samples - 1) * keys)).long()
        own = torch.arange(samples, device=index.device)[:, None] * keys
        return index + keys * (index >= own)


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances, without a matrix product, which TensorFloat-32 would round to 0.05 cells."""
    first, second = at_least_float32(first), at_least_float32(second)
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _random_indices(allowed: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """``number`` different indices (B, number) in random order, those where ``allowed`` (B, M) is True first."""
    return _uniform(tuple(allowed.shape), generator).masked_fill(~allowed, -1).topk(number, 1).indices
