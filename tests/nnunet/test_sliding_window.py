"""The sliding window against a slow loop over windows and voxels, and its laws."""

import itertools

import numpy as np
import pytest
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch import Tensor

from nnunet_invariance.errors import ShapeError
from nnunet_invariance.nnunet.sliding_window import sliding_window, window_starts

GRIDS = [((8, 9), (4, 6)), ((5, 12, 7), (5, 6, 4)), ((16, 16, 8), (8, 8, 8)), ((33, 20, 18), (16, 16, 16))]


def slow_average(compute, image: np.ndarray, window, starts) -> np.ndarray:
    """Loops over windows and voxels in double precision."""
    gaussian = compute_gaussian(tuple(window), dtype=torch.float32, device=torch.device("cpu")).double().numpy()
    total, weight = None, np.zeros(image.shape[1:])
    for start in starts:
        part = image[(slice(None), *(slice(a, a + n) for a, n in zip(start, window, strict=True)))]
        found = compute(torch.from_numpy(part)[None])[0][0].double().numpy()
        total = np.zeros((len(found), *image.shape[1:])) if total is None else total
        for offset in itertools.product(*map(range, window)):
            voxel = tuple(a + b for a, b in zip(start, offset, strict=True))
            total[(slice(None), *voxel)] += gaussian[offset] * found[(slice(None), *offset)]
            weight[voxel] += gaussian[offset]
    assert total is not None
    return total / weight


@pytest.mark.parametrize(("size", "window"), GRIDS)
def test_windows_cover_every_voxel_and_are_nnunets(size, window):
    covered = np.zeros(size, int)
    for start in window_starts(size, window):
        assert all(a >= 0 and a + w <= n for a, w, n in zip(start, window, size, strict=True))
        covered[tuple(slice(a, a + w) for a, w in zip(start, window, strict=True))] += 1
    assert covered.min() >= 1


@pytest.mark.parametrize(("size", "window"), GRIDS)
def test_the_weights_are_a_partition_of_unity(size, window):
    def constant(part: Tensor) -> list[Tensor]:
        return [torch.stack([torch.full(part.shape[2:], value) for value in (1.0, -3.0)])[None]]

    (result,) = sliding_window(constant, torch.zeros(1, *size), window)
    torch.testing.assert_close(result[0], torch.ones(size))
    torch.testing.assert_close(result[1], torch.full(size, -3.0))


@pytest.mark.parametrize(("size", "window"), GRIDS)
def test_a_pointwise_network_gives_what_it_gives_on_the_whole_image(size, window):
    image = torch.randn(2, *size)
    (result,) = sliding_window(lambda part: [part**2 - part.flip(1)], image, window)
    torch.testing.assert_close(result, image**2 - image.flip(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "window"), GRIDS[:2])
def test_it_equals_a_slow_loop_for_a_network_that_depends_on_the_window(size, window):
    def compute(part: Tensor) -> list[Tensor]:
        return [torch.cat((part.cumsum(2), part - part.mean()), 1)]

    image = torch.randn(1, *size)
    (result,) = sliding_window(compute, image, window)
    slow = slow_average(compute, image.numpy(), window, window_starts(size, window))
    np.testing.assert_allclose(result.numpy(), slow, rtol=1e-4, atol=1e-5)


def test_coarse_maps_and_aligned_windows():
    size, window, cells, align = (24, 24, 16), (12, 16, 8), [(1, 2, 1), (4, 4, 4)], (4, 8, 4)
    starts = window_starts(size, window, align)
    assert all(a % m == 0 for start in starts for a, m in zip(start, align, strict=True))
    assert {start[0] for start in starts} == {0, 4, 12}

    def compute(part: Tensor) -> list[Tensor]:
        return [torch.nn.functional.avg_pool3d(part, cell) for cell in cells]

    image = torch.randn(1, *size)
    for result, cell in zip(sliding_window(compute, image, window, cells, align), cells, strict=True):
        torch.testing.assert_close(result, torch.nn.functional.avg_pool3d(image, cell), rtol=1e-5, atol=1e-5)


def test_half_precision_maps_are_averaged_in_float32():
    (result,) = sliding_window(lambda part: [part.half()], torch.full((1, 8, 8), 0.1), (4, 4))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.full((1, 8, 8), 0.1), rtol=1e-3, atol=1e-4)


def test_an_image_smaller_than_the_window_is_refused():
    with pytest.raises(ShapeError, match=r"size \(8, 3\), the window \(4, 4\).*Pad it"):
        sliding_window(lambda part: [part], torch.zeros(1, 8, 3), (4, 4))
