"""Label maps: templates painted over one another, then a foreground mask and an envelope (arXiv 2411.02372)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.synthesis.painting import paint
from nnunet_invariance.synthesis.randomness import bernoulli, noise_grids, uniform, uniform_int
from nnunet_invariance.synthesis.separable import smooth_noise
from nnunet_invariance.synthesis.templates import TemplateBank


@dataclass(frozen=True)
class Foreground:
    """Parameters of a deformed sphere, in voxels; ``half_width``: of the envelope around it, or ``None``."""

    centre: Tensor  # (3,)
    radius: float
    displacement: list[Tensor]  # (3, ...) per scale
    half_width: int | None


@dataclass(frozen=True)
class Ensemble:
    """Parameters of one label map; later templates cover earlier ones."""

    templates: Tensor  # (n,) indices into the bank
    matrices: Tensor  # (n, 3, 3): voxel of the map to voxel of the template
    shifts: Tensor  # (n, 3) voxels
    foreground: Foreground | None


def sample_ensemble(n_templates: int, options: SynthesisOptions, generator: torch.Generator) -> Ensemble:
    """Sample templates with replacement, and their maps M = S R H: scales and reflections S, rotations R, shears H."""
    n = uniform_int(options.templates, generator)
    templates = torch.randint(n_templates, (n,), generator=generator)
    scales = uniform(options.scale, generator, n, 3) * (1 - 2 * torch.randint(2, (n, 3), generator=generator))
    angles = torch.deg2rad(uniform((-options.rotation, options.rotation), generator, n, 3))
    shears = uniform((-options.shear, options.shear), generator, n, 3)
    shear = torch.eye(3).repeat(n, 1, 1)
    shear[:, [0, 0, 1], [1, 2, 2]] = shears
    return Ensemble(
        templates=templates,
        matrices=torch.diag_embed(scales) @ rotations(angles) @ shear,
        shifts=uniform((-options.shift, options.shift), generator, n, 3),
        foreground=_sample_foreground(options, generator) if bernoulli(options.foreground, generator) else None,
    )


def _sample_foreground(options: SynthesisOptions, generator: torch.Generator) -> Foreground:
    size = torch.tensor(options.size)
    offset = torch.randint(-options.offset, options.offset, (3,), generator=generator)
    return Foreground(
        centre=size / 2 + offset * options.size_ratio,
        radius=uniform_int(options.radius, generator) * options.size_ratio,
        displacement=noise_grids(options.size, options.displacement_scales, options.displacement, generator, 3),
        half_width=uniform_int(options.half_width, generator) if bernoulli(options.envelope, generator) else None,
    )


def rotations(angles: Tensor) -> Tensor:
    """R_0 R_1 R_2 (n, 3, 3), rotations about the three axes by angles (n, 3) in radians."""
    product = torch.eye(3).repeat(len(angles), 1, 1)
    for axis, (a, b) in enumerate(((1, 2), (2, 0), (0, 1))):
        step = torch.eye(3).repeat(len(angles), 1, 1)
        cos, sin = angles[:, axis].cos(), angles[:, axis].sin()
        step[:, a, a], step[:, a, b], step[:, b, a], step[:, b, b] = cos, -sin, sin, cos
        product = product @ step
    return product


def apply_ensemble(bank: TemplateBank, params: Sequence[Ensemble], options: SynthesisOptions) -> Tensor:
    """Make label maps (B, 1, z, y, x), uint8; 0 where no template is, or outside the foreground if there is one."""
    labels = paint(bank, params, options.size, first=0 if options.official_quirks else 1)
    painted = max(len(one.templates) for one in params)  # no label is larger
    labels = median_of_ids(labels, painted) if options.official_quirks else majority(labels, painted)
    foregrounds = {row: one.foreground for row, one in enumerate(params) if one.foreground is not None}
    if not foregrounds:
        return labels
    rows = copy_to(labels.device, list(foregrounds))
    return labels.index_copy(0, rows, apply_foreground(labels.index_select(0, rows), list(foregrounds.values())))


def _line(axis: int) -> tuple[int, ...]:
    return tuple(-1 if a == axis else 1 for a in range(-1, 3))


def box_count(mask: Tensor) -> Tensor:
    """Count the set voxels in the 3 x 3 x 3 box around each voxel of (B, 1, z, y, x), uint8; the border is repeated."""
    count = mask.to(torch.uint8)
    for axis in (2, 3, 4):
        n = count.shape[axis] - 1
        total = count.clone()
        total.narrow(axis, 0, n).add_(count.narrow(axis, 1, n))
        total.narrow(axis, 1, n).add_(count.narrow(axis, 0, n))
        total.narrow(axis, 0, 1).add_(count.narrow(axis, 0, 1))
        total.narrow(axis, n, 1).add_(count.narrow(axis, n, 1))
        count = total
    return count


def majority(labels: Tensor, largest: int) -> Tensor:
    """The most frequent label in the 3 x 3 x 3 box around each voxel; of equals the voxel's own, else the lowest.

    No label is larger than ``largest``.
    """
    best = torch.zeros_like(labels)
    most = torch.zeros_like(labels)
    for label in range(largest + 1):
        own = labels == label
        votes = box_count(own).mul_(2).add_(own)
        best.masked_fill_(votes > most, label)
        torch.maximum(most, votes, out=most)
    return best


def median_of_ids(labels: Tensor, largest: int) -> Tensor:
    """The median of the 27 label numbers around each voxel: the number of thresholds that more than half exceed.

    No label is larger than ``largest``.
    """
    median = torch.zeros_like(labels)
    for label in range(largest):
        median += box_count(labels > label) > 13
    return median


def apply_foreground(labels: Tensor, params: Sequence[Foreground]) -> Tensor:
    """Set labels to 0 outside the mask and add 1 inside; an envelope gets the largest label plus 1."""
    size = labels.shape[2:]
    mask = foreground_mask(params, size, labels.device)
    labels = torch.where(mask, labels + 1, 0)
    for row, one in enumerate(params):
        if one.half_width is not None:
            labels[row].masked_fill_(envelope(mask[row], one.half_width), labels[row].max() + 1)
    return labels


def foreground_mask(params: Sequence[Foreground], size: Sequence[int], device: torch.device) -> Tensor:
    """{x : |x + d(x) - centre| < radius}, d: a sum of smooth noise; (B, 1, z, y, x) bool, smoothed by majority."""
    displaced = smooth_noise([one.displacement for one in params], size, device)
    distance = torch.zeros((), device=device)
    for axis, n in enumerate(size):
        centre = copy_to(device, torch.stack([one.centre[axis] for one in params])).reshape(-1, 1, 1, 1)
        line = torch.arange(n, device=device).reshape(*_line(axis))
        distance = distance + (displaced[:, axis] + line - centre).square_()
    radius = copy_to(device, [one.radius for one in params]).reshape(-1, 1, 1, 1)
    return box_count((distance < radius**2)[:, None]) > 13


def envelope(mask: Tensor, half_width: int) -> Tensor:
    """Voxels (1, z, y, x) whose ball of this radius contains both values of the mask: dilation minus erosion."""
    line = torch.arange(-half_width, half_width + 1, device=mask.device).square()
    ball = (line[:, None, None] + line[:, None] + line <= half_width**2).float()
    padded = F.pad(mask.float()[None], [half_width] * 6, mode="replicate")[0, 0]
    spectrum = torch.fft.rfftn(padded) * torch.fft.rfftn(ball, s=padded.shape)
    # The first 2 r voxels of a cyclic convolution wrap around; the padding is removed with them.
    count = torch.fft.irfftn(spectrum, s=padded.shape)[2 * half_width :, 2 * half_width :, 2 * half_width :]
    return ((count > 0.5) & (count < ball.sum().floor() - 0.5))[None]
