"""Sliding-window inference: windows overlap by half and are averaged with nnU-Net's Gaussian weights."""

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import Tensor

from nnunet_invariance.common.progress import Progress
from nnunet_invariance.errors import ShapeError

__all__ = ["sliding_window", "window_starts"]

STEP = 0.5  # step between neighbouring windows, as a fraction of the window size; nnU-Net's default


def sliding_window(
    compute: Callable[[Tensor], Sequence[Tensor]],
    image: Tensor,
    window: Sequence[int],
    cells: Sequence[Sequence[int]] | None = None,
    align: Sequence[int] | None = None,
    device: torch.device | None = None,
    progress: str | None = None,
) -> list[Tensor]:
    r"""Evaluate ``compute`` on overlapping windows of an image and average the resulting maps.

    .. math:: y(v) = \sum_i g_i(v) \, y_i(v) / \sum_i g_i(v)

    The sums run over the windows i that contain voxel v; g is nnU-Net's Gaussian. If a map is coarser than the image, g
    is averaged over the voxels of each cell.

    >>> double = lambda window: [2 * window]
    >>> (result,) = sliding_window(double, torch.ones(1, 6, 6, 9), (4, 4, 4))
    >>> result.shape, bool(torch.allclose(result, torch.tensor(2.0)))
    (torch.Size([1, 6, 6, 9]), True)

    Args:
        compute: maps a window (1, C, \*window) to one or several maps (1, C', \*(window / cell)).
        image: (C, \*size), at least as large as the window; size and window are multiples of every cell.
        window: size of a window in voxels.
        cells: voxels per cell of each map, along each axis; default: one map at the resolution of the image.
        align: windows start at multiples of these numbers of voxels; default: no alignment.
        device: device of the averaged maps; default: the device of the image.
        progress: label of the progress bar; default: no progress bar.

    Returns:
        Averaged maps (C', \*(size / cell)), float32.

    Raises:
        ShapeError: the image is smaller than the window.
    """
    size, window = tuple(image.shape[1:]), tuple(window)
    if len(size) != len(window) or any(n < w for n, w in zip(size, window, strict=True)):
        msg = f"The image has the size {size}, the window {window}; expected an image at least as large. Pad it."
        raise ShapeError(msg)
    sizes = [tuple(cell) for cell in cells or [(1,) * len(window)]]
    return _average_windows(compute, image, window, sizes, window_starts(size, window, align), device, progress)


def _average_windows(
    compute: Callable[[Tensor], Sequence[Tensor]],
    image: Tensor,
    window: tuple[int, ...],
    cells: list[tuple[int, ...]],
    starts: list[tuple[int, ...]],
    device: torch.device | None,
    progress: str | None,
) -> list[Tensor]:
    device = device or image.device
    gaussian = compute_gaussian(window, dtype=torch.float32, device=device)
    weights = [_average(gaussian, cell) for cell in cells]
    totals = [torch.zeros(1, *_divide(image.shape[1:], cell), device=device) for cell in cells]
    sums = [torch.zeros_like(total) for total in totals]
    for start in Progress(starts, desc=progress or "", unit="window", shown=progress is not None):
        whole_window = (slice(None), *_region(start, window))
        maps = compute(image[whole_window][None])
        for i, (found, weight, cell) in enumerate(zip(maps, weights, cells, strict=True)):
            region = (slice(None), *_region(_divide(start, cell), found.shape[2:]))
            if len(totals[i]) != found.shape[1]:  # number of channels, known after the first window
                totals[i] = totals[i].new_zeros(found.shape[1], *totals[i].shape[1:])
            totals[i][region] += found[0].to(device, torch.float32) * weight
            sums[i][region] += weight
    return [total / weight for total, weight in zip(totals, sums, strict=True)]


def window_starts(
    size: Sequence[int], window: Sequence[int], align: Sequence[int] | None = None
) -> list[tuple[int, ...]]:
    """Start positions of the windows that cover an image, with nnU-Net's steps, rounded down to multiples of ``align``.

    >>> window_starts((8, 6), (4, 6))
    [(0, 0), (2, 0), (4, 0)]
    """
    steps = compute_steps_for_sliding_window(tuple(size), tuple(window), STEP)
    multiples = align or (1,) * len(window)
    axes = [sorted({start // m * m for start in axis}) for axis, m in zip(steps, multiples, strict=True)]
    return list(itertools.product(*axes))


def _average(gaussian: Tensor, cell: tuple[int, ...]) -> Tensor:
    """Average the weights (*window) over the voxels of each cell; returns (1, *(window / cell))."""
    pool = F.avg_pool3d if gaussian.ndim == 3 else F.avg_pool2d
    return pool(gaussian[None, None], cell)[0]


def _region(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))


def _divide(size: Sequence[int], cell: Sequence[int]) -> tuple[int, ...]:
    return tuple(n // c for n, c in zip(size, cell, strict=True))
