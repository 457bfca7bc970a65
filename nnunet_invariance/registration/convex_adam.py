"""ConvexAdam registration (Siebert et al., IEEE TMI 2024) for arbitrary features.

The main function of the library ``convexadam`` only accepts two images and always computes their MIND features. This
module therefore calls the library's components (descriptors, costs, coupled convex optimisation, inverse consistency)
and implements the Adam stage, which the library does not provide as a function.
"""

import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.common.extras import install_command
from nnunet_invariance.common.options import Options, count, number
from nnunet_invariance.errors import MissingPackageError

CHANNELS_AT_ONCE = 4  # limits the memory, because the library unfolds the moving features
LEARNING_RATE = 1.0
COST_SCALE = 12.0  # number of channels of MIND-SSC, over which the library sums


@dataclass(frozen=True)
class ConvexAdamOptions(Options):
    """Settings of ConvexAdam (arXiv 2411.02372); lengths are in voxels of the working grid.

    >>> ConvexAdamOptions(smoothness=2.0).iterations
    80

    Raises:
        OptionError: a value is out of range.
    """

    subject: ClassVar[str] = "ConvexAdam's {name} is {value!r}"

    grid: int = count(2, 1, doc="Spacing of the grid of the convex stage.")
    search: int = count(1, 1, doc="Largest displacement along each axis in the convex stage, in grid steps.")
    grid_adam: int = count(2, 1, doc="Spacing of the grid of the Adam stage.")
    iterations: int = count(80, 0, doc="Steps of the Adam stage.")
    smoothness: float = number(0.75, 0, math.inf, doc="Weight of the diffusion regulariser.")


def library() -> ModuleType:
    """Import ``convexAdam.convex_adam_utils``.

    Raises:
        MissingPackageError: ``convexadam`` is not installed.
    """
    try:
        with warnings.catch_warnings():  # the import disables all warnings
            return importlib.import_module("convexAdam.convex_adam_utils")
    except ModuleNotFoundError as error:
        msg = f"Registration needs the library convexadam, which is not installed ({error}). "
        raise MissingPackageError(f"{msg}Install it: {install_command('registration')}") from error


def mind_ssc(x: Tensor, radius: int = 1, dilation: int = 2) -> Tensor:
    """Compute MIND-SSC features (1, 12, z, y, x) of an image (1, 1, z, y, x)."""
    with _quiet():
        return library().MINDSSC(x, radius, dilation, device=x.device)


def convex_adam(
    fixed: Tensor,
    moving: Tensor,
    options: ConvexAdamOptions,
    report: Callable[[int, float], object] | None = None,
) -> Tensor:
    """Compute a displacement u (3, z, y, x) in voxels along z, y, x, such that moving(x + u(x)) matches fixed(x).

    Args:
        fixed, moving: features (1, C, z, y, x) on the same grid.
        options: settings of both stages.
        report: callback with step and loss, called after each step of the Adam stage.
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
    """Inverse-consistent displacement (1, 3, z, y, x) in voxels from the convex stage."""
    lib, grid, size = library(), options.grid, tuple(fixed.shape[2:])
    coarse = [F.avg_pool3d(features, grid, stride=grid) for features in (fixed, moving)]
    n = 2 * options.search + 1
    identity = options.search * torch.eye(3, 4, device=fixed.device)[None]
    with _quiet():
        tried = F.affine_grid(identity, [1, 1, n, n, n], align_corners=True).permute(0, 4, 1, 2, 3).reshape(3, -1, 1)
        fields = []
        for one, other in (coarse, coarse[::-1]):
            cost = _costs(one, other, options, size)
            fields.append(lib.coupled_convex(cost, cost.argmin(0), tried, grid, size))
        # grid_sample expects coordinates in units of half the image extent, in the order x, y, z.
        scale = torch.tensor(fields[0].shape[2:], device=fixed.device).view(1, 3, 1, 1, 1) / 2
        consistent, _ = lib.inverse_consistency(*((field / scale).flip(1) for field in fields), iter=15)
    return F.interpolate(consistent.flip(1) * scale * grid, size=size, mode="trilinear")


def _costs(one: Tensor, other: Tensor, options: ConvexAdamOptions, size: tuple[int, ...]) -> Tensor:
    """Smoothed squared differences (displacements, z, y, x), computed for a few channels at a time."""
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
    """Minimise 12 mean_c (F - M(x + s(u)))^2 + w |grad s(u)|^2 over u, where s is three box filters; returns s(u)."""
    grid = options.grid_adam
    fixed, moving = (F.avg_pool3d(features, grid, stride=grid) for features in (fixed, moving))
    size = fixed.shape[2:]
    u = torch.nn.Parameter(F.interpolate(start, size=size, mode="trilinear") / grid)
    identity = F.affine_grid(torch.eye(3, 4, device=u.device)[None], [1, 1, *size], align_corners=False)
    half = torch.tensor(size, device=u.device) / 2
    optimizer = torch.optim.Adam([u], lr=LEARNING_RATE)
    for step in range(options.iterations):
        optimizer.zero_grad()
        smooth = _smooth(u)
        positions = identity + (smooth.permute(0, 2, 3, 4, 1) / half).flip(-1)
        warped = F.grid_sample(moving, positions, mode="bilinear", padding_mode="border", align_corners=False)
        cost = COST_SCALE * (warped - fixed).square().mean()
        rough = torch.stack([smooth.diff(dim=axis).square().mean() for axis in (2, 3, 4)]).sum()
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
    """Suppress PyTorch's warning about ``align_corners``, which the library does not set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
