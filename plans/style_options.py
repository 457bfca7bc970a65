"""Options of the trainers that change the style of training images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from nnunet_invariance.augmentation.style_names import StyleName
from nnunet_invariance.common.options import choice, number, option
from nnunet_invariance.plans.options import DenseContrastOptions
from nnunet_invariance.plans.values import are_stages


@dataclass(frozen=True)
class StyleOptions(DenseContrastOptions):
    """Options of every trainer that changes the style of training images.

    ``style_views`` and ``style_probability`` p together give the share of the images that keep their style: 1 - p / 2
    of a pair, 1 - p of single views.

    Raises:
        OptionError: a value has the wrong type or is out of range, or an option needs a pair of views.

    >>> StyleOptions(style="gin", style_probability=0.5).style_views
    'pair'
    """

    style: StyleName = choice(  # noqa: RUF009  a field, as all others
        *get_args(StyleName), doc="Style intervention; docs/icmseg.md describes each."
    )
    # With the labels unread, networks were better on the trained contrast and on three changed ones (docs/icmseg.md).
    tissues: Literal["image", "labels"] = choice(
        "image",
        "labels",
        doc="What an intervention divides into tissues: the whole image by its intensities, or each label.",
    )
    style_probability: float = number(1.0, 0.0, 1.0, doc="Probability that a sample is styled.")
    style_views: Literal["pair", "single"] = choice(
        "pair",
        "single",
        doc="Both views of a patch, of which the second can be styled, or one view that can be styled.",
    )
    style_start: float = number(0.0, 0.0, 1.0, doc="Fraction of the run before any sample is styled.")
    style_ramp: float = number(
        0.0, 0.0, 1.0, doc="Fraction of the run over which the probability rises linearly from 0, after the start."
    )
    consistency_weight: float = number(
        0.0, 0.0, 100.0, doc="Weight of the divergence between the segmentations of both views."
    )
    # Without it, networks were better on the trained contrast and on average no worse on others
    # (docs/results/icmseg-shift.md).
    aux_weight: float = number(
        0.0, 0.0, 100.0, doc="Weight of InfoNCE relative to the segmentation loss; it needs a pair."
    )
    aux_gradient_share: float | None = number(
        None,
        0.0,
        10.0,
        low_excluded=True,
        optional=True,
        doc="Norm of InfoNCE's gradient at the encoder relative to that of the segmentation loss, which then sets its "
        "weight; null: the weight is `aux_weight`.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("aux_weight", "consistency_weight", "aux_gradient_share"):
            if self.style_views == "single" and getattr(self, name):
                raise self.error(name, "0 or null, because style_views is 'single' and the loss compares two views")

    @property
    def contrasts(self) -> bool:
        """Whether InfoNCE is trained."""
        return self.aux_weight > 0 or self.aux_gradient_share is not None


@dataclass(frozen=True)
class ICMSegTrainerOptions(StyleOptions):
    """Options of ICMSegTrainer; by default it trains on styles alone, and ``aux_weight`` above 0 adds InfoNCE.

    Raises:
        OptionError: a value has the wrong type or is out of range, or an option needs a pair of views or InfoNCE.

    >>> ICMSegTrainerOptions(style="gin").contrast
    'all_positions'
    """

    contrast: Literal["all_positions", "within_image", "same_position"] = choice(
        "all_positions",
        "within_image",
        "same_position",
        doc="Which positions InfoNCE compares; same_position of other samples is the paper's, for large batches.",
    )
    label_mask: Literal["none", "exclude_same_class", "supcon"] = choice(
        "none",
        "exclude_same_class",
        "supcon",
        doc="Whether positions with the anchor's label are negatives, ignored, or positives.",
    )
    views_probability: float = number(
        0.0, 0.0, 1.0, doc="Probability that the second view of a patch is one that `style preprocess` stored."
    )
    stages: Sequence[int] | None = option(
        None,
        "a list of different whole numbers of at least 0, or null",
        lambda v: v is None or are_stages(v),
        doc="Encoder stages for InfoNCE, 0 is the finest; null takes the deepest stage with enough positions.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.style_views == "single" and self.views_probability:
            raise self.error(
                "views_probability", "0, because style_views is 'single' and stored views are second views"
            )
        for name, default in (("contrast", "all_positions"), ("label_mask", "none"), ("stages", None)):
            if not self.contrasts and getattr(self, name) != default:
                remedy = "a pair of views with aux_weight, for example 0.1, turns it on"
                raise self.error(name, f"{json.dumps(default)}, because InfoNCE is off; {remedy}")


@dataclass(frozen=True)
class MaskGenTrainerOptions(StyleOptions):
    """Options of MaskGenTrainer; by default no sample is styled.

    Raises:
        OptionError: a value has the wrong type or is out of range, or an option needs a pair of views.

    >>> MaskGenTrainerOptions().features
    'anatomix_plain4'
    """

    style_probability: float = number(0.0, 0.0, 1.0, doc="Probability that a sample is styled.")
    style_views: Literal["single", "pair"] = choice(
        "single",
        "pair",
        doc="One view that can be styled, or both views of a patch, of which the second can be styled.",
    )
    features: Literal["anatomix_plain4", "anatomix", "anatomix-dev"] = choice(
        "anatomix_plain4",
        "anatomix",
        "anatomix-dev",
        doc="Network of the frozen features: the shipped one, or an anatomix U-Net.",
    )
    feature_dropout: float = number(
        0.75, 0.0, 0.99, doc="Probability that training hides a feature or image channel from the planned network."
    )
