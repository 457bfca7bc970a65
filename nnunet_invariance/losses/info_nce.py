"""The forms of InfoNCE: supervised over labels, and patch-wise between two views. Both are cases of one core."""

import torch
from torch import Tensor, nn

from nnunet_invariance.common.collectives import get_rank
from nnunet_invariance.errors import OptionError, ShapeError
from nnunet_invariance.losses.tiled_info_nce import COUNT_EXPONENTS, info_nce


class SupervisedInfoNCE(nn.Module):
    r"""Every row of a label is a positive of every other row of that label (SupCon, arXiv 2004.11362).

    The equation stands at :func:`info_nce`. With both views of N voxels as 2N rows of a map, and one map a batch, it is
    the loss of anatomix (arXiv 2411.02372), whose class weights are options here. A uniform guess has log(2N - 1).

    Args:
        temperature: T, larger than 0.
        positives: "within": equal labels of two maps mean different things, as in random label maps; "across": they
            mean the same, as in a segmentation.
        negatives: whether an anchor meets the rows of its own map only, or of all maps, on all ranks.
        rarity: "none", "sqrt" or "raw": anchors weigh by the inverse (root of the) number of rows of their class.
        balance: likewise, rows in the denominator, as many as the anchor meets of their class.

    Raises:
        OptionError: a value is unknown or out of range.
    """

    def __init__(
        self,
        temperature: float = 0.33,
        positives: str = "within",
        negatives: str = "within",
        rarity: str = "none",
        balance: str = "none",
    ) -> None:
        super().__init__()
        self.temperature = _positive("temperature", temperature)
        self.positives = _choice("positives", positives, ("within", "across"))
        self.negatives = _choice("negatives", negatives, ("within", "across"))
        self.rarity = _choice("rarity", rarity, tuple(COUNT_EXPONENTS))
        self.balance = _choice("balance", balance, tuple(COUNT_EXPONENTS))

    def forward(self, rows: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss in float32 or better, whatever autocast is on, the same on every rank.

        Shape:
            rows: (B, N, D), row n of map b, of any view; they need not be normalised.
            labels: (B, N) whole numbers. valid: (B, N) bool; a row that is False is neither anchor, positive nor
            negative. All by default.
            Returns a scalar; 0 where no row has a positive.

        Raises:
            ShapeError: labels or valid do not fit the rows.
        """
        counts = _counts(rows, valid)
        _check("labels", labels, rows.shape[:2])
        sample, position = _sample_and_position(rows)
        label = labels.flatten()[:, None].long()
        positive = label if self.positives == "across" else torch.cat((sample, label), 1)
        group = torch.zeros_like(position) if self.negatives == "across" else sample
        return info_nce(
            rows.flatten(0, 1)[counts],
            positive[counts],
            group[counts],
            temperature=self.temperature,
            rarity=self.rarity,
            balance=self.balance,
        )


class PatchInfoNCE(nn.Module):
    r"""Each position of one view must find itself in the other view, among other positions of both views.

    With the unit rows :math:`z = [a; b]` of both views, :math:`S = z z^\top / T`, :math:`i^+` the same position of the
    same sample in the other view, and :math:`D(i)` the rows that i meets, itself excepted:

    .. math:: L = \frac{1}{|V|} \sum_{i \in V} \Big( \log \sum_{j \in D(i)} \exp S_{ij} - S_{i i^+} \Big)

    V holds the rows that count. The form is NT-Xent (SimCLR, arXiv 2002.05709) over patches, as ICMSeg uses it between
    two styles of an image (arXiv 2411.05223).

    Args:
        temperature: T, larger than 0.
        negatives: D(i) are the rows of "all_positions" of all samples; those "within_image", of the same sample (CUT,
            arXiv 2007.15651); or those at the "same_position" of any sample, ICMSeg's own form, which needs large
            batches and samples that share their positions.
        label_mask: "none"; "exclude_same_class" takes rows of the anchor's label out of D(i), all but its positive;
            "supcon" makes them positives, over which S is averaged.

    Raises:
        OptionError: a value is unknown or out of range.
    """

    def __init__(self, temperature: float = 0.2, negatives: str = "all_positions", label_mask: str = "none") -> None:
        super().__init__()
        self.temperature = _positive("temperature", temperature)
        self.negatives = _choice("negatives", negatives, ("all_positions", "within_image", "same_position"))
        self.label_mask = _choice("label_mask", label_mask, ("none", "exclude_same_class", "supcon"))

    def forward(
        self, first: Tensor, second: Tensor, valid: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The loss in float32 or better, whatever autocast is on, the same on every rank.

        Over B samples of all ranks, a uniform guess among all positions has log(2BN - 1).

        Shape:
            first, second: (B, N, D), position n of sample b in both views; they need not be normalised.
            valid: (B, N) bool; a position that is False is neither anchor, positive nor negative. All by default.
            labels: (B, N) whole numbers, for a label mask.
            Returns a scalar, at least 0; 0 where no position counts.

        Raises:
            OptionError: there is a label mask, but no labels.
            ShapeError: the tensors do not fit each other.
        """
        _check("second", second, first.shape)
        counts = _counts(first, valid).repeat(2)
        sample, position = (key.repeat(2, 1) for key in _sample_and_position(first))
        everyone = torch.zeros_like(position)
        group = {"all_positions": everyone, "within_image": sample, "same_position": position}[self.negatives]
        positive, excluded = torch.cat((sample, position), 1), None
        if self.label_mask != "none":
            if labels is None:
                msg = f"label_mask is {self.label_mask!r}, but there are no labels; "
                raise OptionError(f"{msg}expected labels (B, N). Pass them, or set label_mask to 'none'.")
            _check("labels", labels, first.shape[:2])
            label = labels.flatten()[:, None].long().repeat(2, 1)
            if self.label_mask == "supcon":
                positive = torch.cat((group, label), 1)
            else:
                excluded = label[counts]
        rows = torch.cat((first.flatten(0, 1), second.flatten(0, 1)))
        return info_nce(rows[counts], positive[counts], group[counts], excluded, temperature=self.temperature)


def _sample_and_position(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Keys of (B, N, ...) rows, flattened: (BN, 2) rank and sample, (BN, 1) position."""
    samples, positions = rows.shape[:2]
    sample = torch.arange(samples, device=rows.device).repeat_interleave(positions)
    position = torch.arange(positions, device=rows.device).repeat(samples)
    return torch.stack((torch.full_like(sample, get_rank()), sample), 1), position[:, None]


def _counts(rows: Tensor, valid: Tensor | None) -> Tensor:
    """(BN,) the rows that count; the others leave before they, even if NaN, can reach a gradient."""
    if rows.ndim != 3:
        raise ShapeError(f"The rows have shape {tuple(rows.shape)}; expected (B, N, D). Flatten spatial axes to N.")
    if valid is None:
        return torch.ones(rows.shape[0] * rows.shape[1], dtype=torch.bool, device=rows.device)
    _check("valid", valid, rows.shape[:2])
    return valid.flatten().bool()


def _check(name: str, tensor: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        msg = f"{name!r} has shape {tuple(tensor.shape)}; expected {tuple(shape)}, that of the rows. "
        raise ShapeError(f"{msg}Sample it at the same positions.")


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise OptionError(f"Option {name!r} is {value!r}; expected a number larger than 0. Take 0.07 to 0.5.")
    return value


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise OptionError(f"Option {name!r} is {value!r}; expected one of {', '.join(map(repr, choices))}.")
    return value
