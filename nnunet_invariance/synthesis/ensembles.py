"""Label ensembles: templates painted over one another, then a foreground mask and an envelope (arXiv 2411.02372)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.synthesis.randomness import bernoulli, noise_grids, uniform, uniform_int
from nnunet_invariance.synthesis.separable import smooth_noise
from nnunet_invariance.synthesis.templates import TemplateBank

CACHED_VOXELS = 2**16
BLOCK = 8  # voxels a side: a map is painted block by block, and only where a template may be


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
    side = math.gcd(BLOCK, *size)
    counts = [n // side for n in size]
    blocks = torch.zeros(len(draws) * math.prod(counts), side, side, side, dtype=torch.uint8, device=device)
    # A processor is several times faster on few voxels that stay in its cache; a GPU wants all at once.
    at_once = len(blocks) if device.type != "cpu" else max(1, CACHED_VOXELS // side**3)
    for k in range(len(draws[order[0]].templates)):
        rows = [draws[row] for row in order if len(draws[row].templates) > k]
        maps = [(draw.templates[k], draw.matrices[k], draw.shifts[k]) for draw in rows]
        stencil = _stencil(bank, maps, counts, side)
        for chosen in stencil.reaching().split(at_once):
            index = stencil.index(chosen)
            inside = bank.flat.index_select(0, index.reshape(-1)).reshape(index.shape)
            blocks[chosen] = blocks[chosen].masked_fill_(inside.bool(), first + k)
    labels = blocks.reshape(len(draws), *counts, side, side, side).permute(0, 1, 4, 2, 5, 3, 6)
    return labels.reshape(len(draws), 1, *size)[torch.tensor(order).argsort().to(device)]


@dataclass(frozen=True)
class _Stencil:
    """Where in the flat bank the voxels of a map, in blocks, read one template; lists go over the template's axes."""

    steps: list[list[Tensor]]  # turns of the period along each axis of the map: (b, blocks of the axis, side)
    periods: list[Tensor]  # (b,), as all that follow
    fronts: list[Tensor]
    extents: list[Tensor]
    offset: Tensor

    def reaching(self) -> Tensor:
        """Numbers of the blocks, over all elements, that may meet the template's crop; the others do not."""
        near = torch.ones((), dtype=torch.bool, device=self.offset.device)
        for axis, (z, y, x) in enumerate(self.steps):
            period, extent = _column(self.periods[axis]), _column(self.extents[axis])
            middles = [step.mean(-1) for step in (z, y, x)]
            place = middles[0][:, :, None, None] + middles[1][:, None, :, None] + middles[2][:, None, None, :]
            reach = sum((step[:, 0, -1] - step[:, 0, 0]).abs() / 2 for step in (z, y, x))
            away = place - (_column(self.fronts[axis]) + extent / 2) / period
            away = (away - away.round()).abs()  # to the nearest copy
            # The empty border of the crop, one voxel a side, is more than rounding can take away.
            near = near & (away <= extent / 2 / period + _column(reach))
        return near.reshape(-1).nonzero()[:, 0]

    def index(self, chosen: Tensor) -> Tensor:
        """The voxels of these blocks, (n, side, side, side); outside the crop it is the crop's empty border."""
        counts = [step.shape[1] for step in self.steps[0]]
        x = chosen % counts[2]
        y = chosen // counts[2] % counts[1]
        z = chosen // (counts[2] * counts[1]) % counts[0]
        row = chosen // math.prod(counts)
        places = []
        for axis, steps in enumerate(self.steps):
            turns = (steps[0][row, z][:, :, None, None] + steps[1][row, y][:, None, :, None]) + (
                steps[2][row, x][:, None, None, :]
            )
            turns.sub_(turns.floor())
            place = turns.mul_(_column(self.periods[axis][row])).floor_().sub_(_column(self.fronts[axis][row]))
            places.append(place.clamp_(min=0).clamp_(max=_column(self.extents[axis][row]) - 1))
        plane, line = (_column(self.extents[axis][row]) for axis in (1, 2))
        rows = places[0].mul_(plane).add_(places[1])  # whole numbers far below 2^24: exact
        return rows.long().mul_(line.long()).add_(places[2].long()).add_(_column(self.offset[row]))


def _column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)


def _stencil(
    bank: TemplateBank, maps: Sequence[tuple[Tensor, Tensor, Tensor]], counts: Sequence[int], side: int
) -> _Stencil:
    device = bank.flat.device
    chosen, matrices, shifts = (torch.stack(part) for part in zip(*maps, strict=True))
    steps = []
    for axis, periods in enumerate(bank.periods[chosen].T):
        turns = [matrices[:, axis, a, None] * torch.arange(n * side) / periods[:, None] for a, n in enumerate(counts)]
        turns[1] = turns[1] + ((shifts[:, axis] + 0.5) / periods)[:, None]  # + 0.5: cutting off gives the nearest
        steps.append([turn.to(device).reshape(len(maps), n, side) for turn, n in zip(turns, counts, strict=True)])
    return _Stencil(
        steps=steps,
        periods=[p.to(device) for p in bank.periods[chosen].T.float()],
        fronts=[f.to(device) for f in bank.fronts[chosen].T.float() - 1],
        extents=[e.to(device) for e in bank.extents[chosen].T.float()],
        offset=bank.offsets[chosen].to(device),
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
