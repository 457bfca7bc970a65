"""Options of the registration."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from nnunet_invariance.common.options import Options, choice, flag, number

__all__ = ["RegistrationOptions"]


@dataclass(frozen=True)
class RegistrationOptions(Options):
    """Settings of a registration: features, working grid and preprocessing.

    >>> RegistrationOptions(features="mind", spacing=2.0).ct
    'none'

    Raises:
        OptionError: a value is out of range.
    """

    subject: ClassVar[str] = "The registration option {name} is {value!r}"

    features: Literal["both", "anatomix", "mind"] = choice(
        "both", "anatomix", "mind", doc="Features to compare: MIND-SSC, network features, or both."
    )
    ct: Literal["none", "fixed", "moving", "both"] = choice(
        "none", "fixed", "moving", "both", doc="CT images, which are clipped to [-450, 450] HU before the comparison."
    )
    spacing: float | None = number(
        None, 0, math.inf, low_excluded=True, optional=True,
        doc="Voxel size of the working grid in mm; null: keep the voxel volume of the fixed image.",
    )  # fmt: skip
    affine: bool = flag(True, doc="Align the images affinely first.")
