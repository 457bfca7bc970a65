"""Label ensembles: templates painted over one another, then a foreground mask and an envelope (arXiv 2411.02372)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.synthesis.randomness import happens, noise_grids, uniform, whole
from nnunet_invariance.synthesis.separable import smooth_noise
from nnunet_invariance.synthesis.templates import TemplateBank

CACHED_VOXELS = 2**14


@dataclass(frozen=True)
class Foreground:
    """A deformed sphere, in voxels; ``half_width`` of the envelope around it, or ``None``."""

    centre: Tensor  # (3,)
    radius: float
    displacement: list[Tensor]  # (3, ...) a scale
    half_width: int | None


@dataclass(frozen=True)
class Ensemble:
    """What one label map is made of; later templates cover earlier ones."""

    templates: Tensor  # (n,) indices into the bank
    matrices: Tensor  # (n, 3, 3): voxel of the map to voxel of the template
    shifts: Tensor  # (n, 3) voxels
    foreground: Foreground | None


def sample_ensemble(n_templates: int, options: SynthesisOptions, generator: torch.Generator) -> Ensemble:
    """Draw templates (with replacement) and their maps M = S R H, S scales and reflections, R turns, H shears."""
    n = whole(options.templates, generator)
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
        foreground=_sample_foreground(options, generator) if happens(options.foreground, generator) else None,
    )


def _sample_foreground(options: SynthesisOptions, generator: torch.Generator) -> Foreground:
    size = torch.tensor(options.size)
    offset = torch.randint(-options.offset, options.offset, (3,), generator=generator)
    return Foreground(
        centre=size / 2 + offset * options.size_ratio,
        radius=whole(options.radius, generator) * options.size_ratio,
        displacement=noise_grids(options.size, options.displacement_scales, options.displacement, generator, 3),
        half_width=whole(options.half_width, generator) if happens(options.envelope, generator) else None,
    )


def rotations(angles: Tensor) -> Tensor:
    """R_0 R_1 R_2 (n, 3, 3) of turns about the three axes, radians (n, 3)."""
    product = torch.eye(3).repeat(len(angles), 1, 1)
    for axis, (a, b) in enumerate(((1, 2), (2, 0), (0, 1))):
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        cos, sin = angles[:, axis].cos(), angles[:, axis].sin()
        turn[:, a, a], turn[:, a, b], turn[:, b, a], turn[:, b, b] = cos, -sin, sin, cos
        product = product @ turn
    return product


def apply_ensemble(bank: TemplateBank, draws: Sequence[Ensemble], options: SynthesisOptions) -> Tensor:
    """Label maps (B, 1, z, y, x), uint8: 0 is what nothing covers, outside of the foreground where there is one."""
    labels = paint(bank, draws, options.size, first=0 if options.official_quirks else 1)
    labels = median_of_ids(labels) if options.official_quirks else majority(labels)
    rows = [row for row, draw in enumerate(draws) if draw.foreground is not None]
    if rows:
        labels[rows] = apply_foreground(labels[rows], [draws[row].foreground for row in rows])
    return labels


def paint(bank: TemplateBank, draws: Sequence[Ensemble], size: Sequence[int], first: int = 1) -> Tensor:
    """Template k gets the value ``first`` + k wherever its periodic copies, read at M x + t, are."""
    device = bank.flat.device
    # Most templates first: those that still paint are then always the first rows.
    order = sorted(range(len(draws)), key=lambda row: -len(draws[row].templates))
    labels = torch.zeros(len(draws), *size, dtype=torch.uint8, device=device)
    # A processor is several times faster on a few planes that stay in its cache; a GPU wants all at once.
    planes = size[0] if device.type != "cpu" else max(1, CACHED_VOXELS // (len(draws) * size[1] * size[2]))
    for k in range(len(draws[order[0]].templates)):
        rows = [draws[row] for row in order if len(draws[row].templates) > k]
        stencil = _stencil(bank, [(draw.templates[k], draw.matrices[k], draw.shifts[k]) for draw in rows], size)
        for start in range(0, size[0], planes):
            index = stencil.index(start, min(start + planes, size[0]))
            inside = bank.flat.index_select(0, index.reshape(-1)).reshape(index.shape)
            labels[: len(rows), start : start + planes].masked_fill_(inside.bool(), first + k)
    return labels[torch.tensor(order).argsort().to(device)][:, None]


@dataclass(frozen=True)
class _Stencil:
    """Where in the flat bank the voxels of a map read one template; all lists go over the template's axes."""

    steps: list[
        list[Tensor]
    ]  # turns of the period along each axis of the map, (b, n, 1, 1), (b, 1, n, 1), (b, 1, 1, n)
    periods: list[Tensor]  # (b, 1, 1, 1), as all that follow
    fronts: list[Tensor]
    extents: list[Tensor]
    offset: Tensor

    def index(self, start: int, stop: int) -> Tensor:
        """Planes ``start`` to ``stop`` of the map, (b, z, y, x); outside the crop it is the crop's empty border."""
        places = []
        for axis, (z, y, x) in enumerate(self.steps):
            turns = (z[:, start:stop] + y) + x
            turns.sub_(turns.floor())
            place = turns.mul_(self.periods[axis]).floor_().sub_(self.fronts[axis])
            places.append(place.clamp_(min=0).clamp_(max=self.extents[axis] - 1))
        rows = places[0].mul_(self.extents[1]).add_(places[1])  # whole numbers far below 2^24: exact
        return rows.long().mul_(self.extents[2].long()).add_(places[2].long()).add_(self.offset)


def _stencil(bank: TemplateBank, maps: Sequence[tuple[Tensor, Tensor, Tensor]], size: Sequence[int]) -> _Stencil:
    device = bank.flat.device
    chosen, matrices, shifts = (torch.stack(part) for part in zip(*maps, strict=True))

    def column(values: Tensor) -> Tensor:
        return values.to(device).reshape(-1, 1, 1, 1)

    steps = []
    for axis, periods in enumerate(bank.periods[chosen].T):
        turns = [matrices[:, axis, a, None] * torch.arange(n) / periods[:, None] for a, n in enumerate(size)]
        turns[1] = turns[1] + ((shifts[:, axis] + 0.5) / periods)[:, None]  # + 0.5: cutting off gives the nearest
        shapes = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
        steps.append([turn.to(device).reshape(len(maps), *shape) for turn, shape in zip(turns, shapes, strict=True)])
    return _Stencil(
        steps=steps,
        periods=[column(p) for p in bank.periods[chosen].T.float()],
        fronts=[column(f) for f in bank.fronts[chosen].T.float() - 1],
        extents=[column(e) for e in bank.extents[chosen].T.float()],
        offset=column(bank.offsets[chosen]),
    )


def _line(axis: int) -> tuple[int, ...]:
    return tuple(-1 if a == axis else 1 for a in range(-1, 3))


def box_count(mask: Tensor) -> Tensor:
    """How many of the 3 x 3 x 3 voxels around each of (B, 1, z, y, x) are set, uint8; the border goes on outside."""
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


def majority(labels: Tensor) -> Tensor:
    """The most frequent label of the 3 x 3 x 3 voxels around each; between equals the voxel's own, else the lowest."""
    best = torch.zeros_like(labels)
    most = torch.zeros_like(labels)
    for label in range(int(labels.max()) + 1):
        own = labels == label
        votes = box_count(own).mul_(2).add_(own)
        best.masked_fill_(votes > most, label)
        torch.maximum(most, votes, out=most)
    return best


def median_of_ids(labels: Tensor) -> Tensor:
    """The median of the 27 label numbers around each voxel: the thresholds that more than half of them exceed."""
    median = torch.zeros_like(labels)
    for label in range(int(labels.max())):
        median += box_count(labels > label) > 13
    return median


def apply_foreground(labels: Tensor, draws: Sequence[Foreground]) -> Tensor:
    """0 outside the mask, 1 more inside; an envelope gets one label more than the largest."""
    size = labels.shape[2:]
    mask = foreground_mask(draws, size, labels.device)
    labels = torch.where(mask, labels + 1, 0)
    for row, draw in enumerate(draws):
        if draw.half_width is not None:
            labels[row].masked_fill_(envelope(mask[row], draw.half_width), int(labels[row].max()) + 1)
    return labels


def foreground_mask(draws: Sequence[Foreground], size: Sequence[int], device: torch.device) -> Tensor:
    """{x : |x + d(x) - centre| < radius}, d a sum of smooth noise; (B, 1, z, y, x) bool, smoothed by majority."""
    displaced = smooth_noise([draw.displacement for draw in draws], size, device)
    distance = torch.zeros((), device=device)
    for axis, n in enumerate(size):
        centre = torch.stack([draw.centre[axis] for draw in draws]).to(device).reshape(-1, 1, 1, 1)
        line = torch.arange(n, device=device).reshape(*_line(axis))
        distance = distance + (displaced[:, axis] + line - centre).square_()
    radius = torch.tensor([draw.radius for draw in draws], device=device).reshape(-1, 1, 1, 1)
    return box_count((distance < radius**2)[:, None]) > 13


def envelope(mask: Tensor, half_width: int) -> Tensor:
    """Voxels (1, z, y, x) whose ball of this radius holds both inside and outside: dilation without erosion."""
    line = torch.arange(-half_width, half_width + 1, device=mask.device).square()
    ball = (line[:, None, None] + line[:, None] + line <= half_width**2).float()
    padded = F.pad(mask.float()[None], [half_width] * 6, mode="replicate")[0, 0]
    spectrum = torch.fft.rfftn(padded) * torch.fft.rfftn(ball, s=padded.shape)
    # The first 2 r voxels of a cyclic convolution wrap around; behind them is what was padded.
    count = torch.fft.irfftn(spectrum, s=padded.shape)[2 * half_width :, 2 * half_width :, 2 * half_width :]
    return ((count > 0.5) & (count < math.floor(float(ball.sum())) - 0.5))[None]
