"""ConvexAdam (Siebert et al., IEEE TMI 2024) on any features.

The entry of the library ``convexadam`` takes two images and computes MIND of them; features cannot be handed in. Its
parts are called instead: descriptors, costs, coupled convex optimisation, inverse consistency. The Adam stage is part
of that entry alone, so it is ours.
"""

import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.common.extras import install_command
from nnunet_invariance.errors import MissingPackageError, OptionError

CHANNELS_AT_ONCE = 4  # the library unfolds the moving features: memory is this share of all channels
LEARNING_RATE = 1.0
COST_SCALE = 12.0  # as in the library: the sum over the 12 channels of MIND-SSC


@dataclass(frozen=True)
class ConvexAdamOptions:
    """Settings of arXiv 2411.02372; lengths in voxels of the working grid.

    Raises:
        OptionError: a number is out of range.
    """

    #: Spacing of the grid of the convex stage.
    grid: int = 2
    #: The convex stage tries displacements up to this many grid steps along each axis.
    search: int = 1
    #: Spacing of the grid of the Adam stage, and its steps.
    grid_adam: int = 2
    iterations: int = 80
    #: Weight of the diffusion regulariser.
    smoothness: float = 0.75

    def __post_init__(self) -> None:
        for name, least in (("grid", 1), ("search", 1), ("grid_adam", 1), ("iterations", 0), ("smoothness", 0)):
            if getattr(self, name) < least:
                msg = f"ConvexAdam's {name} is {getattr(self, name)}; expected at least {least}."
                raise OptionError(msg)


def library() -> ModuleType:
    """``convexAdam.convex_adam_utils``.

    Raises:
        MissingPackageError: ``convexadam`` is not installed.
    """
    try:
        with warnings.catch_warnings():  # importing it switches all warnings off
            return importlib.import_module("convexAdam.convex_adam_utils")
    except ModuleNotFoundError as error:
        msg = f"Registration needs the library convexadam, which is not installed ({error}). "
        raise MissingPackageError(f"{msg}Install it: {install_command('registration')}") from error


def mind_ssc(x: Tensor, radius: int = 1, dilation: int = 2) -> Tensor:
    """MIND-SSC (1, 12, z, y, x) of an image (1, 1, z, y, x)."""
    with _quiet():
        return library().MINDSSC(x, radius, dilation, device=x.device)


def convex_adam(
    fixed: Tensor,
    moving: Tensor,
    options: ConvexAdamOptions,
    report: Callable[[int, float], object] | None = None,
) -> Tensor:
    """Displacement (3, z, y, x) in voxels, axis by axis, with moving(x + u(x)) like fixed(x).

    Args:
        fixed, moving: features (1, C, z, y, x) on one grid.
        report: called with step and loss of the Adam stage.
    """
    spatial = fixed.shape[2:]
    step = math.lcm(options.grid, options.grid_adam)
    rest = [-n % step for n in spatial]
    padding = [amount for n in reversed(rest) for amount in (0, n)]
    fixed, moving = (F.pad(features, padding, mode="replicate") for features in (fixed, moving))
    with torch.no_grad():
        start = _convex(fixed, moving, options)
    u = _adam(fixed, moving, start, options, report or (lambda step, loss: None))
    return u[0, :, : spatial[0], : spatial[1], : spatial[2]]


def _convex(fixed: Tensor, moving: Tensor, options: ConvexAdamOptions) -> Tensor:
    """Displacement (1, 3, z, y, x) in voxels, made inverse consistent."""
    lib, grid, size = library(), options.grid, tuple(fixed.shape[2:])
    coarse = [F.avg_pool3d(features, grid, stride=grid) for features in (fixed, moving)]
    n = 2 * options.search + 1
    identity = options.search * torch.eye(3, 4, device=fixed.device)[None]
    with _quiet():
        tried = F.affine_grid(identity, (1, 1, n, n, n), align_corners=True).permute(0, 4, 1, 2, 3).reshape(3, -1, 1)
        fields = []
        for one, other in (coarse, coarse[::-1]):
            cost = _costs(one, other, options, size)
            fields.append(lib.coupled_convex(cost, cost.argmin(0), tried, grid, size))
        # grid_sample counts in half extents, x first.
        scale = torch.tensor(fields[0].shape[2:], device=fixed.device).view(1, 3, 1, 1, 1) / 2
        consistent, _ = lib.inverse_consistency(*((field / scale).flip(1) for field in fields), iter=15)
    return F.interpolate(consistent.flip(1) * scale * grid, size=size, mode="trilinear")


def _costs(one: Tensor, other: Tensor, options: ConvexAdamOptions, size: tuple[int, ...]) -> Tensor:
    """Smoothed squared differences (displacements, z, y, x); they add over channels, so a few channels at a time."""
    total = torch.zeros((), device=one.device)
    for part, counterpart in zip(*(features.split(CHANNELS_AT_ONCE, 1) for features in (one, other)), strict=True):
        cost, _ = library().correlate(part, counterpart, options.search, options.grid, size, part.shape[1])
        total = total + cost
    return total


def _adam(
    fixed: Tensor,
    moving: Tensor,
    start: Tensor,
    options: ConvexAdamOptions,
    report: Callable[[int, float], object],
) -> Tensor:
    """mean_c (F - M(x + s(u)))^2 · 12 + w |grad s(u)|^2 over u, s three box filters; returns s(u) at full size."""
    grid = options.grid_adam
    fixed, moving = (F.avg_pool3d(features, grid, stride=grid) for features in (fixed, moving))
    size = fixed.shape[2:]
    u = torch.nn.Parameter(F.interpolate(start, size=size, mode="trilinear") / grid)
    identity = F.affine_grid(torch.eye(3, 4, device=u.device)[None], (1, 1, *size), align_corners=False)
    half = torch.tensor(size, device=u.device) / 2
    optimizer = torch.optim.Adam([u], lr=LEARNING_RATE)
    for step in range(options.iterations):
        optimizer.zero_grad()
        smooth = _smooth(u)
        places = identity + (smooth.permute(0, 2, 3, 4, 1) / half).flip(-1)
        warped = F.grid_sample(moving, places, mode="bilinear", padding_mode="border", align_corners=False)
        cost = COST_SCALE * (warped - fixed).square().mean()
        rough = sum(smooth.diff(dim=axis).square().mean() for axis in (2, 3, 4))
        loss = cost + options.smoothness * rough
        loss.backward()
        optimizer.step()
        report(step, float(loss.detach()))
    return F.interpolate(_smooth(u.detach()) * grid, scale_factor=grid, mode="trilinear")


def _smooth(u: Tensor) -> Tensor:
    for _ in range(3):
        u = F.avg_pool3d(u, 3, stride=1, padding=1, count_include_pad=False)
    return u


@contextmanager
def _quiet() -> Iterator[None]:
    """The library leaves ``align_corners`` to its default, of which PyTorch warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
