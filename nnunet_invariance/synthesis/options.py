"""Ranges of all parameters of the synthesis engine."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nnunet_invariance.common.options import Options, choice, count, flag, is_int, number, option

Range = tuple[float, float]
SIDE = 128  # voxels; lengths that scale with the volume are given for this side


def interval(low: float, high: float, least: float = -math.inf, most: float = math.inf, doc: str = "") -> Any:
    """An option (low, high) of two ordered numbers in [``least``, ``most``]; a value is sampled uniformly from it."""
    expected = f"two numbers (low, high) with {least:g} <= low <= high <= {most:g}"

    def accepts(value: Any) -> bool:
        if not isinstance(value, tuple | list) or len(value) != 2:
            return False
        if not all((is_int(v) or isinstance(v, float)) and math.isfinite(v) for v in value):
            return False
        return least <= value[0] <= value[1] <= most

    return option((low, high), expected, accepts, doc)


def int_interval(low: int, high: int, least: int, doc: str = "") -> Any:
    """An option (low, high) of two ordered integers of at least ``least``; both ends can be sampled."""

    def accepts(value: Any) -> bool:
        whole = isinstance(value, tuple | list) and len(value) == 2 and all(is_int(v) for v in value)
        return whole and least <= value[0] <= value[1]

    return option((low, high), f"two whole numbers (low, high) with {least} <= low <= high", accepts, doc)


def scales(*default: int, doc: str = "") -> Any:
    """An option of several grid spacings in voxels."""

    def accepts(value: Any) -> bool:
        return isinstance(value, tuple | list) and len(value) > 0 and all(is_int(v) and v >= 1 for v in value)

    return option(default, "whole numbers of at least 1", accepts, doc)


def probability(default: float, doc: str = "") -> Any:
    """An option in [0, 1]."""
    return number(default, 0, 1, doc=doc)


@dataclass(frozen=True)
class SynthesisOptions(Options):
    """Ranges of arXiv 2411.02372 and its code.

    >>> SynthesisOptions(size=(96, 96, 96)).size_ratio
    0.75

    Raises:
        OptionError: a value is out of range, or the size is no multiple of the divisor or below 32.
    """

    subject: ClassVar[str] = "Synthesis option {name!r} is {value!r}"

    size: tuple[int, int, int] = option((SIDE,) * 3, "", lambda value: True, doc="Voxels along z, y, x.")
    divisor: int = count(16, 1, doc="Every axis must be a multiple of it; the anatomix U-Net pools by 16.")
    shapes: Literal["procedural", "formula", "mixed"] = choice(
        "procedural", "formula", "mixed",
        doc="Shapes that are used without a folder of templates: deformed spheres, tubes, sheets and organs, shapes of "
        "implicit formulas, or both.",
    )  # fmt: skip
    templates: tuple[int, int] = int_interval(20, 39, 1, doc="Number of templates in one map.")
    scale: tuple[float, float] = interval(
        0.5, 1.5, 0, doc="Scales of the affine map to the template; each axis is reflected with probability 1/2."
    )
    rotation: float = number(180.0, 0, 180, doc="Largest rotation about each axis, degrees.")
    shear: float = number(0.5, 0, math.inf, doc="Largest shear; the three entries above the diagonal.")
    shift: float = number(5.0, 0, math.inf, doc="Largest shift of the affine map, voxels.")
    foreground: float = probability(2 / 3, doc="Probability of a foreground mask.")
    envelope: float = probability(0.5, doc="Probability of an envelope around a foreground mask.")
    radius: tuple[int, int] = int_interval(
        48, 71, 1, doc="Radius of the foreground sphere, voxels of a volume of side 128."
    )
    offset: int = count(32, 1, doc="Largest offset of the foreground sphere, voxels of a volume of side 128.")
    displacement_scales: tuple[int, ...] = scales(
        8, 16, 32, doc="Spacings of the noise grids of the foreground's displacement, voxels."
    )
    displacement: tuple[float, float] = interval(
        1.0, 5.0, 0, doc="Standard deviation of the displacement per grid, voxels."
    )
    half_width: tuple[int, int] = int_interval(2, 4, 1, doc="Half-width of the envelope, voxels.")
    mean: tuple[float, float] = interval(25.0, 255.0, doc="Mean intensity of a label.")
    std: tuple[float, float] = interval(5.0, 20.0, 0, doc="Standard deviation of the intensities of a label.")
    empty_background: float = probability(0.25, doc="Probability that the smallest label is exactly 0.")
    texture_scales: tuple[int, ...] = scales(4, 8, 16, 32, doc="Spacings of the noise grids of the texture, voxels.")
    texture: tuple[float, float] = interval(0.0, 5.0, 0, doc="Standard deviation of the texture per grid.")
    texture_weight: float = number(0.02, 0, math.inf, doc="Weight of the texture.")
    bias_probability: float = probability(0.98, doc="Probability of a bias field.")
    bias: tuple[float, float] = interval(0.0, 0.075, doc="Coefficients of the bias field.")
    bias_degree: int = count(3, 0, doc="Largest total degree of the polynomials of the bias field.")
    spike_probability: float = probability(0.2, doc="Probability of a spike in the spectrum.")
    spike: tuple[float, float] = interval(
        0.95, 1.1, 0, doc="Strength of a spike, times 2.5 the mean log magnitude of the spectrum."
    )
    gamma_probability: float = probability(0.5, doc="Probability of a gamma change.")
    gamma: tuple[float, float] = interval(0.5, 2.0, 0, doc="Exponent of the gamma change.")
    smoothing_probability: float = probability(0.5, doc="Probability of a Gaussian blur.")
    smoothing: tuple[float, float] = interval(0.0, 0.333, 0, doc="Standard deviation of the blur, voxels.")
    ringing_probability: float = probability(0.5, doc="Probability of Gibbs ringing.")
    ringing: tuple[float, float] = interval(0.0, 0.333, 0, 1, doc="Share alpha of the spectrum that ringing removes.")
    sharpening_probability: float = probability(0.25, doc="Probability of sharpening.")
    sharpening_sigma: tuple[float, float] = interval(
        0.5, 1.0, 0, doc="First standard deviation, voxels; the second is sampled between the lower end and the first."
    )
    sharpening: tuple[float, float] = interval(10.0, 30.0, doc="Weight of sharpening.")
    low_resolution_probability: float = probability(0.333, doc="Probability of a lower resolution.")
    zoom: tuple[float, float] = interval(
        0.5, 1.0, 0, 1, doc="Size at the lower resolution, as a share of the full size."
    )
    official_quirks: bool = flag(
        False,
        doc="Behave as the official generator: the first template only erases, label ids pass a median filter, "
        "corruptions act in the planes of the last two axes, coarse voxels are chosen by their lower corners.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) != 3 or any(n < 32 or n % self.divisor for n in self.size):
            fitting = tuple(max(32, -(-n // self.divisor) * self.divisor) for n in self.size)
            expected = f"three numbers, each at least 32 and a multiple of {self.divisor}. The next that fit: {fitting}"
            raise self.error("size", expected)

    @property
    def size_ratio(self) -> float:
        """The shortest side over 128; radius and offset of the foreground sphere scale by it."""
        return min(self.size) / SIDE
