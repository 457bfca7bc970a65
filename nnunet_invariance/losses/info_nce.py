"""The forms of InfoNCE: supervised by labels, and between positions of two views. Both use one core."""

from typing import Literal

import torch
from torch import Tensor

from nnunet_invariance.common.collectives import get_rank
from nnunet_invariance.errors import OptionError
from nnunet_invariance.losses.base import Loss, check_choice, check_dimensions, check_shape, check_temperature
from nnunet_invariance.losses.tiled_info_nce import CLASS_WEIGHTS, class_ids, class_sizes, info_nce, join_ids

ClassWeight = Literal["none", "inverse_sqrt", "inverse"]
Scope = Literal["within", "across"]


class SupervisedInfoNCE(Loss):
    r"""Rows of one label are positives of each other (SupCon, arXiv 2004.11362).

    :func:`~nnunet_invariance.losses.tiled_info_nce.info_nce` has the equation. With both views of N voxels as the 2N
    rows of a map and one map per batch, it is the loss of anatomix (arXiv 2411.02372), whose class weights are optional
    here. If all rows are equal, the loss is log(2N - 1).

    >>> features, labels = torch.eye(4)[None], torch.tensor([[0, 0, 1, 1]])
    >>> SupervisedInfoNCE(temperature=0.5)(features, labels)  # log(3): all rows are equally far apart
    tensor(1.0986)

    Args:
        temperature: T, larger than 0.
        positives: "within": a label means something different in each map, as in random label maps; "across": it means
            the same in all maps, as in a segmentation.
        negatives: "within": the denominator contains rows of the anchor's own map; "across": rows of all maps, on all
            ranks.
        anchor_class_weight: "none", "inverse_sqrt" or "inverse": anchors are weighted by the inverse (square root of
            the) number of rows in their class.
        denominator_class_weight: the same for rows in the denominator; only rows that are in it are counted.

    Raises:
        OptionError: a value is unknown or out of range.
    """

    def __init__(
        self,
        temperature: float = 0.33,
        positives: Scope = "within",
        negatives: Scope = "within",
        anchor_class_weight: ClassWeight = "none",
        denominator_class_weight: ClassWeight = "none",
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.positives = check_choice("positives", positives, "within", "across")
        self.negatives = check_choice("negatives", negatives, "within", "across")
        self.anchor_class_weight = check_choice("anchor_class_weight", anchor_class_weight, *CLASS_WEIGHTS)
        self.denominator_class_weight = check_choice(
            "denominator_class_weight", denominator_class_weight, *CLASS_WEIGHTS
        )

    def forward(self, features: Tensor, labels: Tensor, valid_mask: Tensor | None = None) -> Tensor:
        """The loss in float32 or better, also under autocast, and the same on every rank.

        Shape:
            features: (B, N, D), row n of map b, of any view; they need not be normalised.
            labels: (B, N) whole numbers.
            valid_mask: (B, N) bool; a row that is False is no anchor, no positive and no negative. Default: all True.
            Returns a scalar; 0 where no row has a positive.

        Raises:
            ShapeError: the shapes do not agree.
        """
        mask = _check_rows(features, "features", valid_mask)
        check_shape("labels", labels, features.shape[:2], "(B, N) of 'features'")
        label, group = labels.long(), None
        one_block = "across" in (self.positives, self.negatives)
        if one_block:
            features, label, sample = features.flatten(0, 1)[None], label.view(1, -1), _sample_ids(features)
            mask = None if mask is None else mask.view(1, -1)
            if self.positives == "within":
                label = _on_this_rank(join_ids(class_ids(label), class_ids(sample)))
            if self.negatives == "within":
                group = _on_this_rank(sample)
        return info_nce(
            features,
            label,
            mask,
            temperature=self.temperature,
            group=group,
            anchor_class_weight=self.anchor_class_weight,
            denominator_class_weight=self.denominator_class_weight,
            gather=one_block,
        )

    @torch.no_grad()
    def bounds(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        r"""The loss of ideal features and of equal features, with positives and negatives within a map.

        Ideal features are equal within a label, and labels are the corners of a regular simplex: the cosine between two
        of K labels is -1 / (K - 1). With equally many rows of each label, no loss is lower.

        >>> SupervisedInfoNCE(temperature=1.0).bounds(torch.tensor([[0, 0, 1, 1]]))  # log(1 + 2 / e^2), log(3)
        (tensor(0.2395), tensor(1.0986))

        Shape:
            labels: (B, N) whole numbers, as in :meth:`forward`. Returns two scalars.
        """
        size = class_sizes(class_ids(labels.long()), torch.ones_like(labels, dtype=torch.float32))
        exponents = CLASS_WEIGHTS[self.anchor_class_weight], CLASS_WEIGHTS[self.denominator_class_weight]
        anchor = (size > 1) * size ** exponents[0]
        anchor = anchor / anchor.sum().clamp(min=1e-12)
        own = (size - 1).clamp(min=1) ** (1 + exponents[1])
        others = (size ** exponents[1]).sum(1, keepdim=True) - size ** (1 + exponents[1])
        num_labels = size.reciprocal().sum(1, keepdim=True).round()
        cosine = -1 / (num_labels - 1).clamp(min=1)
        apart = others * torch.exp((cosine - 1) / self.temperature)
        ideal, equal = (own + apart).log(), (own + others).log()
        return (anchor * ideal).sum(), (anchor * equal).sum()


class PatchInfoNCE(Loss):
    r"""Each position of one view has to find the same position in the other view, among other positions of both views.

    With the unit rows :math:`z = [a; b]` of both views, :math:`S = z z^\top / T`, :math:`i^+` the same position of the
    same sample in the other view, and :math:`D(i)` the rows in the denominator of i, without i itself:

    .. math:: L = \frac{1}{|V|} \sum_{i \in V} \Big( \log \sum_{j \in D(i)} \exp S_{ij} - S_{i i^+} \Big)

    V are the valid rows. The form is NT-Xent (SimCLR, arXiv 2002.05709) over patches, as ICMSeg uses it between two
    styles of an image (arXiv 2411.05223).

    >>> first = torch.eye(4)[None]
    >>> PatchInfoNCE(temperature=1.0)(first, first)  # log(1 + 6 / e)
    tensor(1.1654)

    Args:
        temperature: T, larger than 0.
        negatives: D(i) are the rows of "all_positions" of all samples; those "within_image", of the same sample (CUT,
            arXiv 2007.15651); or those at the "same_position" of any sample, ICMSeg's own form, which needs large
            batches and samples that share their positions, equally many on every rank.
        label_mask: "none"; "exclude_same_class" removes the rows of the anchor's label from D(i), except its positive;
            "supcon" makes them positives, over which S is averaged.

    Raises:
        OptionError: a value is unknown or out of range.
    """

    def __init__(
        self,
        temperature: float = 0.2,
        negatives: Literal["all_positions", "within_image", "same_position"] = "all_positions",
        label_mask: Literal["none", "exclude_same_class", "supcon"] = "none",
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.negatives = check_choice("negatives", negatives, "all_positions", "within_image", "same_position")
        self.label_mask = check_choice("label_mask", label_mask, "none", "exclude_same_class", "supcon")

    def forward(
        self, first: Tensor, second: Tensor, valid_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The loss in float32 or better, also under autocast, and the same on every rank.

        With B samples on all ranks together, the loss of equal rows among all positions is log(2BN - 1).

        Shape:
            first, second: (B, N, D), position n of sample b in both views; they need not be normalised.
            valid_mask: (B, N) bool; a position that is False is no anchor, no positive and no negative. Default: all
            True.
            labels: (B, N) whole numbers, for a label mask.
            Returns a scalar, at least 0; 0 where no position is valid.

        Raises:
            OptionError: there is a label mask, but no labels.
            ShapeError: the shapes do not agree.
        """
        mask = _check_rows(first, "first", valid_mask)
        check_shape("second", second, first.shape, "(B, N, D) of 'first'")
        label = self._labels(first, labels)
        twin = _on_this_rank(torch.arange(first.shape[:2].numel(), device=first.device).view(first.shape[:2]))
        supcon = self.label_mask == "supcon"
        return info_nce(
            self._in_blocks(first, second),
            self._in_blocks(*(label, label) if label is not None and supcon else (twin, twin)),
            None if mask is None else self._in_blocks(mask, mask),
            temperature=self.temperature,
            excluded=None if label is None or supcon else self._in_blocks(label, label),
            gather=self.negatives != "within_image",
        )

    def _labels(self, first: Tensor, labels: Tensor | None) -> Tensor | None:
        if self.label_mask == "none":
            return None
        if labels is None:
            raise OptionError(
                f"Argument 'label_mask' is {self.label_mask!r}, but there are no labels; expected labels (B, N). Pass "
                "them, or set label_mask to 'none'."
            )
        check_shape("labels", labels, first.shape[:2], "(B, N) of 'first'")
        return labels.long()

    def _in_blocks(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, N, ...) of both views to (G, M, ...), blocks of rows that meet."""
        both = torch.stack((first, second))
        if self.negatives == "all_positions":
            return both.flatten(0, 2)[None]
        if self.negatives == "within_image":
            return both.transpose(0, 1).flatten(1, 2)
        return both.movedim(2, 0).flatten(1, 2)


def _check_rows(features: Tensor, name: str, valid_mask: Tensor | None) -> Tensor | None:
    check_dimensions(name, features, 3, "(B, N, D); flatten spatial axes to N", most=3)
    if valid_mask is None:
        return None
    check_shape("valid_mask", valid_mask, features.shape[:2], f"(B, N) of {name!r}")
    return valid_mask.bool()


def _sample_ids(features: Tensor) -> Tensor:
    """(1, B * N): the index of the sample of each row."""
    samples, positions = features.shape[:2]
    return torch.arange(samples, device=features.device)[:, None].expand(-1, positions).reshape(1, -1)


def _on_this_rank(ids: Tensor) -> Tensor:
    """Ids that no other rank uses."""
    return ids + (get_rank() << 40)
