"""Every range of the synthesis engine."""

from dataclasses import dataclass

from nnunet_invariance.errors import OptionError

Range = tuple[float, float]
SIDE = 128  # voxels; lengths that scale with the volume are given at this side


@dataclass(frozen=True)
class SynthesisOptions:
    """Ranges as in arXiv 2411.02372 and its code; a pair is the interval of a uniform draw.

    Raises:
        OptionError: the size does not fit the divisor or is below 32.
    """

    #: Voxels along z, y, x.
    size: tuple[int, int, int] = (SIDE, SIDE, SIDE)
    #: Every axis must be a multiple of it; 16 is what the anatomix U-Net pools by.
    divisor: int = 16
    #: Templates painted into one map: least and most.
    templates: tuple[int, int] = (20, 39)
    #: Axis scales of the affine map from the ensemble to the template; each axis is reflected with probability 1/2.
    scale: Range = (0.5, 1.5)
    #: Largest turn about each axis, degrees.
    rotation: float = 180.0
    #: Largest shear; the three entries above the diagonal.
    shear: float = 0.5
    #: Largest shift of the affine map, voxels.
    shift: float = 5.0
    #: Probability of a foreground mask; of the masked maps, that of an envelope around it.
    foreground: float = 2 / 3
    envelope: float = 0.5
    #: Radius and largest offset of the foreground sphere, voxels of a volume of side 128.
    radius: tuple[int, int] = (48, 71)
    offset: int = 32
    #: Spacings of the displacement's noise grids (voxels), and the standard deviation drawn for each (voxels).
    displacement_scales: tuple[int, ...] = (8, 16, 32)
    displacement: Range = (1.0, 5.0)
    #: Half-widths of the envelope, voxels.
    half_width: tuple[int, int] = (2, 4)
    #: Mean and standard deviation of a label's intensities.
    mean: Range = (25.0, 255.0)
    std: Range = (5.0, 20.0)
    #: Probability that the smallest label is exactly 0.
    empty_background: float = 0.25
    #: Spacings of the texture's noise grids (voxels), the standard deviation drawn for each, and the texture's weight.
    texture_scales: tuple[int, ...] = (4, 8, 16, 32)
    texture: Range = (0.0, 5.0)
    texture_weight: float = 0.02
    #: Probability of each corruption, and its range.
    bias_probability: float = 0.98
    bias: Range = (0.0, 0.075)
    bias_degree: int = 3
    spike_probability: float = 0.2
    spike: Range = (0.95, 1.1)  # of 2.5 times the mean log magnitude of the spectrum
    gamma_probability: float = 0.5
    gamma: Range = (0.5, 2.0)
    smoothing_probability: float = 0.5
    smoothing: Range = (0.0, 0.333)  # standard deviation, voxels
    ringing_probability: float = 0.5
    ringing: Range = (0.0, 0.333)
    sharpening_probability: float = 0.25
    sharpening_sigma: Range = (0.5, 1.0)  # voxels; the second filter's is drawn between the lower end and the first's
    sharpening: Range = (10.0, 30.0)
    low_resolution_probability: float = 0.333
    zoom: Range = (0.5, 1.0)
    #: The official generator's peculiarities: the first template only erases, label ids pass a median filter,
    #: corruptions act in the planes of the last two axes, coarse voxels are picked by ``nearest``.
    official_quirks: bool = False

    def __post_init__(self) -> None:
        if len(self.size) != 3 or any(n < 32 or n % self.divisor for n in self.size):
            msg = (
                f"Size {self.size}: every one of the three axes must be at least 32 and a multiple of {self.divisor}. "
                f"The next that fit: {tuple(max(32, -(-n // self.divisor) * self.divisor) for n in self.size)}."
            )
            raise OptionError(msg)

    @property
    def size_ratio(self) -> float:
        """The shortest side over 128, by which radius and offset of the foreground sphere scale."""
        return min(self.size) / SIDE
