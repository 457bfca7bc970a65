"""Options of a registration."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from nnunet_invariance.common.options import Options, choice, flag, number

__all__ = ["RegistrationOptions"]


@dataclass(frozen=True)
class RegistrationOptions(Options):
    """Which features are compared, on which grid, and what happens before.

    >>> RegistrationOptions(features="mind", spacing=2.0).ct
    'none'

    Raises:
        OptionError: a value is out of range.
    """

    subject: ClassVar[str] = "The registration option {name} is {value!r}"

    features: Literal["both", "anatomix", "mind"] = choice(
        "both", "anatomix", "mind", doc="Features that are compared: MIND-SSC, those of a network, or both."
    )
    ct: Literal["none", "fixed", "moving", "both"] = choice(
        "none", "fixed", "moving", "both", doc="Images that are clipped to [-450, 450] HU before the comparison."
    )
    spacing: float | None = number(
        None, 0, math.inf, low_excluded=True, optional=True,
        doc="Voxel size in mm at which features are compared; null: as many voxels as the fixed image has.",
    )  # fmt: skip
    affine: bool = flag(True, doc="Align the images by an affine map first.")
