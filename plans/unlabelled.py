"""Options of learning from unlabelled scans: the value of ``unlabelled`` in the options block of a plans file."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from nnunet_invariance.augmentation.style_names import StyleName
from nnunet_invariance.common.options import Options, choice, flag, number, option
from nnunet_invariance.plans.values import are_names, are_paths, require_known

#: Every preprocessed case that the fold neither trains on nor validates on.
REST = "rest"


@dataclass(frozen=True)
class UnlabelledOptions(Options):
    """Options of learning from unlabelled scans with a mean teacher (arXiv 1703.01780).

    Raises:
        OptionError: a value has the wrong type or is out of range, there are no scans, or the phases overlap.

    >>> UnlabelledOptions(cases="rest").confidence
    0.7
    """

    subject: ClassVar[str] = 'Option {name!r} of "unlabelled" in the plans block is {value!r}'
    remedy: ClassVar[str] = "Correct it in your plans copy."

    images: Sequence[str] = option(
        (),
        "a list of absolute paths of folders",
        are_paths,
        doc="Folders with unlabelled scans, named like nnU-Net's images.",
    )
    cases: str | Sequence[str] = option(
        (),
        "'rest', or a list of names of preprocessed cases",
        lambda v: v == REST or are_names(v),
        doc="Preprocessed cases whose labels are not used; 'rest': all that the fold neither trains nor validates on.",
    )
    weight: float = number(
        1.0,
        0.0,
        100.0,
        doc="Weight of the loss on unlabelled scans after the ramp; 0 trains on the labels alone and only averages "
        "the weights.",
    )
    confidence: float = number(
        0.7, 0.0, 1.0, high_excluded=True, doc="A voxel counts if the teacher's probability is above this."
    )
    ramp: float = number(0.4, 0.0, 1.0, doc="Fraction of the run over which the weight rises linearly from 0.")
    last_phase: float = number(0.0, 0.0, 1.0, doc="Fraction of the run, at its end, that trains on the labels alone.")
    ema: float = number(
        0.99, 0.0, 1.0, high_excluded=True, doc="Share of the teacher's weights that a training step keeps."
    )
    strong: Literal["intensity"] | StyleName = choice(  # noqa: RUF009  a field, as all others
        "intensity",
        *get_args(StyleName),
        doc="How the student's view differs from the teacher's: gamma, contrast, brightness and noise, or one of the "
        "style interventions of docs/icmseg.md.",
    )
    symmetries: bool = flag(
        False, doc="Whether the student's view is also flipped along a random choice of the mirrored axes."
    )
    mix: bool = flag(
        True,
        doc="Whether the student sees mixtures of the unlabelled and the labelled patch: a box of one in the other.",
    )
    keep: Literal["better", "teacher", "student"] = choice(
        "better",
        "teacher",
        "student",
        doc="Whose weights the final checkpoint has; better: those with the higher pseudo-Dice in the last ten epochs.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.images and not self.cases:
            raise self.error("cases", "'rest' or names of cases, or folders of scans in 'images'")
        if self.ramp + self.last_phase > 1:
            raise self.error("last_phase", f"at most 1 - ramp = {1 - self.ramp:g}")

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> "UnlabelledOptions":
        """Options of the object in the plans block.

        Raises:
            OptionError: a field is unknown, of the wrong type or out of range.
        """
        require_known(value, {item.name for item in dataclasses.fields(cls)}, 'of "unlabelled" in the plans block')
        return cls(**value)
