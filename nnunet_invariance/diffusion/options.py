"""Options of the diffusion path; an error names the command-line flag."""

import math
from dataclasses import dataclass, field
from typing import Literal

from nnunet_invariance.common.options import Options, choice, count, flag, number
from nnunet_invariance.diffusion.noise import NOISES
from nnunet_invariance.errors import OptionError


@dataclass(frozen=True)
class FlagOptions(Options):
    """Options that a user sets by flags of the command line."""

    def error(self, name: str, expected: str) -> OptionError:
        """An error that names the flag instead of the field."""
        return OptionError(f"--{name.replace('_', '-')} is {getattr(self, name)!r}; expected {expected}.")


@dataclass(frozen=True)
class TrainingOptions(FlagOptions):
    """Options of both trainings.

    >>> TrainingOptions(steps=100, learning_rate=1e-5).batch_size
    1

    Raises:
        OptionError: a value is out of range.
    """

    steps: int = count(20_000, 1, doc="Steps of the optimiser.")
    learning_rate: float = number(1e-5, 0, math.inf, low_excluded=True, doc="Learning rate of AdamW.")
    batch_size: int = count(1, 1, doc="Slices per device and pass.")
    grad_accum_steps: int = count(1, 1, doc="Passes whose gradients are averaged in one step.")
    drop_prompt: float = number(
        0.0, 0, 1, doc="Share of samples with an empty prompt, which guidance needs at generation."
    )
    amp: Literal["no", "fp16", "bf16"] = choice("no", "fp16", "bf16", doc="Mixed precision.")
    save_every: int = count(500, 1, doc="Steps between two saved states.")
    seed: int = count(0, 0, doc="Seed of everything random.")


@dataclass(frozen=True)
class SamplingOptions(FlagOptions):
    """Options of the sampling of slices.

    >>> SamplingOptions(steps=20, strength=0.7).scheduler
    'ddim'

    Raises:
        OptionError: a value is unknown or out of range, or no step is left.
    """

    steps: int = count(20, 1, doc="Steps of the scheduler.")
    guidance: float = number(7.5, 0, math.inf, doc="Classifier-free guidance; 1: none.")
    control_scale: float = number(1.0, 0, math.inf, doc="Weight of the ControlNet.")
    strength: float = number(
        0.7, 0, 1, low_excluded=True, doc="Share of the steps that run on the noised source slice; 1: from noise alone."
    )
    noise: str = choice(*NOISES, doc="Noise along the slices of a volume.")
    correlation: float = number(0.9, 0, 1, doc="Correlation of neighbouring slices with autoregressive noise.")
    scheduler: Literal["ddim", "unipc"] = choice("ddim", "unipc", doc="Scheduler.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if int(self.steps * self.strength) < 1:
            raise self.error("strength", f"steps x strength of at least 1, with --steps {self.steps}")


@dataclass(frozen=True)
class ViewOptions(FlagOptions):
    """Options of the generation of views.

    >>> ViewOptions(SamplingOptions(steps=10)).swap
    True

    Raises:
        OptionError: a value is out of range.
    """

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    swap: bool = flag(True, doc="Use the base model's U-Net; False keeps the tuned one, which knows one style only.")
    match: bool = flag(False, doc="Smooth mean and standard deviation of the slices along the volume.")
    seed: int = count(0, 0, doc="Seed of everything random.")
    amp: Literal["no", "fp16", "bf16"] = choice("no", "fp16", "bf16", doc="Mixed precision.")
    batch_size: int = count(4, 1, doc="Slices at once.")
