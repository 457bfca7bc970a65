"""Each transform on the device against batchgeneratorsv2 with the same parameters."""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import blur_dimension
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

from nnunet_invariance.augmentation.on_device import device_form
from nnunet_invariance.augmentation.on_device.geometry import Geometry, GeometryDraw, affine, rotations
from nnunet_invariance.augmentation.on_device.intensity import Blur, Brightness, Contrast, Gamma, LowResolution, Noise
from nnunet_invariance.augmentation.on_device.labels import warp_labels
from tests.helpers.nnunet_pipelines import CASES, stock

MAPS = [((0.3, -0.4, 0.5), 1.3), ((0.0, 0.0, 0.0), 0.7), ((-0.5, 0.2, 0.1), 1.4)]
SIZES = [(12, 15, 18), (17, 24)]


@pytest.fixture
def noise(device: torch.device) -> torch.Generator:
    """A generator on the device."""
    return torch.Generator(device).manual_seed(0)


def rows_of(size, count=3) -> torch.Tensor:
    """Rows with edges and texture."""
    rows = torch.rand((count, *size)) * 2 - 0.5
    rows[:, size[0] // 3 :, size[1] // 2 :] += 3
    return rows


@pytest.mark.parametrize("size", SIZES)
def test_blur_equals_nnunets(size, device, noise):
    rows = rows_of(size)
    sigma = torch.tensor([[0.5, 0.59, 0.75], [0.9, 1.0, 0.55], [0.92, 0.58, 0.7]])[:, : len(size)]
    expected = rows.clone()
    for row, deviations in zip(expected, sigma.tolist(), strict=True):
        for axis, deviation in enumerate(deviations):
            row.copy_(blur_dimension(row[None], deviation, axis, truncate=6)[0])
    blurred = Blur(1.0, 1.0, (0.5, 1.0)).apply(rows.to(device), sigma.to(device), noise)
    torch.testing.assert_close(blurred.cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kept", [(), (0,)])
@pytest.mark.parametrize("size", SIZES)
def test_low_resolution_equals_nnunets(size, kept, device, noise):
    rows, scales = rows_of(size), torch.tensor([0.5, 0.77, 1.0])
    stock_form = SimulateLowResolutionTransform((0.5, 1), False, True, kept or None)
    each = scales[:, None].repeat(1, len(size))
    each[:, list(kept)] = 1
    expected = stock_form._apply_to_image(rows.clone(), apply_to_channel=[0, 1, 2], scales=each)
    lowered = LowResolution(1.0, 1.0, (0.5, 1.0), kept).apply(rows.to(device), scales.to(device), noise)
    torch.testing.assert_close(lowered.cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_equals_nnunets(inverted, device, noise):
    rows, gamma = rows_of((8, 9, 10)), torch.tensor([0.7, 1.0, 1.5])
    rows[1] = 2.0  # a constant row stays finite
    every = torch.ones(3, dtype=torch.bool)
    parameters = {"apply_to_channel": torch.arange(3), "retain_stats": every, "gamma": gamma}
    stock_form = GammaTransform((0.7, 1.5), 0, False, 1, 1)
    expected = stock_form._apply_to_image(rows.clone(), invert_image=every & inverted, **parameters)
    changed = Gamma(1.0, 1.0, (0.7, 1.5), inverted).apply(rows.to(device), gamma.to(device), noise)
    torch.testing.assert_close(changed.cpu(), expected, atol=1e-5, rtol=1e-5)


def test_contrast_and_brightness_equal_nnunets(device, noise):
    rows, factors = rows_of((8, 9, 10)), torch.tensor([0.75, 1.0, 1.25])
    stock_form = ContrastTransform((0.75, 1.25), True, False)
    expected = stock_form._apply_to_image(rows.clone(), apply_to_channel=torch.arange(3), multipliers=factors)
    changed = Contrast(1.0, 1.0, (0.75, 1.25)).apply(rows.to(device).clone(), factors.to(device), noise)
    torch.testing.assert_close(changed.cpu(), expected, atol=1e-5, rtol=1e-5)
    brighter = Brightness(1.0, 1.0, (0.75, 1.25)).apply(rows.to(device).clone(), factors.to(device), noise)
    torch.testing.assert_close(brighter.cpu(), rows * factors[:, None, None, None])


def test_noise_is_white_with_one_deviation_per_image(device, noise):
    transform = Noise(1.0, 1.0, (0.0, 0.1))
    rows = torch.tensor([[0, 0], [0, 1], [3, 1]])
    deviations = transform.sample(rows, 3, torch.Generator().manual_seed(0))
    assert deviations[0] == deviations[1] != deviations[2]
    added = transform.apply(torch.zeros((3, 24, 24, 24), device=device), deviations.to(device), noise).cpu()
    spread = added.flatten(1).std(1)
    torch.testing.assert_close(spread, deviations, atol=0, rtol=0.04)
    power = torch.fft.fftn(added, dim=(1, 2, 3)).abs().square().flatten(1) / spread.square()[:, None]
    halves = power[:, 1:].chunk(2, 1)
    torch.testing.assert_close(halves[0].mean(1), halves[1].mean(1), atol=0, rtol=0.06)
    assert abs(np.corrcoef(added.flatten(1))[0, 1]) < 0.04


# ---- geometry --------------------------------------------------------------------------------------------------------


def enlarged(case: str, channels: int, labels: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A patch of one sample that is larger than asked for, with blobs of labels and outside at one border."""
    patch, dummy = CASES[case]["patch"], CASES[case]["dummy"]
    size = [p if dummy and axis == 0 else p + 9 - axis for axis, p in enumerate(patch)]
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 1, *(max(2, s // 4) for s in size)), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size)
    segmentation = (smooth * labels - 0.5).round().clamp(0, labels - 1).to(torch.int16)
    segmentation[..., : size[-1] // 4] = -1
    return torch.rand((1, channels, *size), generator=generator), segmentation


def fixed(case: str, angles, factor: float):
    """nnU-Net's spatial transform with certain angles and a certain factor, and its pipeline around."""
    pipeline = stock(**CASES[case])
    spatial = next(t for t in pipeline.transforms if hasattr(t, "p_rotation"))
    spatial.rotation = lambda image, dim: angles[dim]
    spatial.scaling = lambda image, dim: factor
    pipeline.transforms = [t for t in pipeline.transforms if type(t).__name__.startswith(("Convert", "Spatial"))]
    return pipeline


@pytest.mark.parametrize(
    ("angles", "factor"), [((0.3, -0.4, 0.5), 1.3), ((0.0, 0.0, 0.0), 0.7), ((-0.5, 0.2, 0.1), 1.4)]
)
@pytest.mark.parametrize("case", CASES)
def test_rotation_and_scaling_equal_nnunets(case, angles, factor, device):
    image, labels = enlarged(case, 2)
    patch, dummy = CASES[case]["patch"], CASES[case]["dummy"]
    axes = len(patch) - dummy
    result = fixed(case, angles[:axes], factor)(image=image[0].clone(), segmentation=labels[0].clone())
    geometry = Geometry(patch[dummy:], dummy, (0.0, 0.0), 1.0, (1.0, 1.0), 1.0, (), (0, 1, 2, 3))
    matrices = rotations(torch.tensor([angles[:axes]], dtype=torch.float64)) * factor
    theta = affine(matrices, patch[dummy:], image.shape[2 + dummy :])
    draw = GeometryDraw(torch.tensor([0]), theta, ((),))
    moved = GeometryDraw(draw.warped.to(device), draw.theta.to(device), ((),))
    got, got_labels = (part.cpu() for part in geometry.apply(image.to(device), labels.to(device), moved))
    torch.testing.assert_close(got[0], result["image"], atol=2e-5, rtol=1e-4)
    assert got_labels.dtype == labels.dtype
    assert {*got_labels.unique().tolist()} == {*result["segmentation"].unique().tolist()} >= {1}
    assert (got_labels[0] != result["segmentation"]).float().mean() < 1e-3
    if factor > 1.2:  # a map that reaches outside of the enlarged patch
        assert (result["image"] == 0).any()


def test_a_map_keeps_a_point_in_place(device):
    """The law behind the matrices: the result at q shows the input at A q, both relative to the centres."""
    matrices = rotations(torch.tensor([[0.0, 0.0, torch.pi / 2]], dtype=torch.float64))
    image = torch.zeros(1, 1, 9, 9, 9)
    image[0, 0, 4 + 2, 4 + 1, 4 + 3] = 1
    geometry = Geometry((7, 7, 7), False, (0.0, 0.0), 1.0, (1.0, 1.0), 0.0, (), (0,))
    draw = GeometryDraw(torch.tensor([0.0]), affine(matrices, (7, 7, 7), (9, 9, 9)), ((),))
    moved = GeometryDraw(*(part.to(device) for part in draw[:2]), ((),))
    turned, _ = geometry.apply(image.to(device), image.short().to(device), moved)
    # A = rotation of axes (0, 1): the input offset (2, 1, 3) is A (1, -2, 3).
    assert (turned[0, 0].cpu() > 0.99).nonzero().tolist() == [[3 + 1, 3 - 2, 3 + 3]]


@pytest.mark.parametrize("case", CASES)
def test_without_a_map_the_centre_is_cut_out_and_mirrored(case, device):
    image, labels = enlarged(case, 2)
    patch, dummy = CASES[case]["patch"], CASES[case]["dummy"]
    axes = tuple(range(len(patch)))
    geometry = Geometry(patch[dummy:], dummy, (0.0, 0.0), 0.0, (1.0, 1.0), 0.0, axes, (0, 1, 2, 3))
    result = fixed(case, (0,) * 3, 1.0)
    spatial = next(t for t in result.transforms if hasattr(t, "p_rotation"))
    spatial.p_rotation = spatial.p_scaling = 0
    cut = result(image=image[0].clone(), segmentation=labels[0].clone())
    flipped = MirrorTransform(axes)._apply_to_image(cut["image"], axes=[0, len(axes) - 1])
    draw = GeometryDraw(torch.zeros(0), torch.zeros(0, 3, 4), ((0, len(axes) - 1),))
    got, got_labels = geometry.apply(image.to(device), labels.to(device), draw)
    assert torch.equal(got[0].cpu(), flipped)
    assert torch.equal(got_labels[0].cpu(), torch.flip(cut["segmentation"], [1, len(axes)]))


def test_many_labels_and_unknown_ones(device):
    """More labels than are interpolated at once give the same result as few; a label that is not listed never wins."""
    _, labels = enlarged("3d", 1, labels=20)
    theta = affine(rotations(torch.tensor([[0.2, 0.1, 0.3]], dtype=torch.float64)), (12, 12, 12), labels.shape[2:])
    grid = torch.nn.functional.affine_grid(theta, [1, 1, 12, 12, 12], align_corners=False).to(device)
    every = warp_labels(labels.to(device), grid, range(20))
    assert len(every.unique()) > 12
    padded = warp_labels(labels.to(device), grid, [*range(20), 30, 31])
    assert torch.equal(every, padded)
    assert not (warp_labels(labels.to(device), grid, range(3)) > 2).any()


@pytest.mark.parametrize("regions", [None, [(1, 2, 3), (2,), (3,)]])
def test_targets_equal_nnunets(regions, device):
    pipeline = stock(**CASES["3d"], regions=regions)
    form = device_form(pipeline, range(4))
    _, labels = enlarged("3d", 1)
    sample = {"segmentation": labels[0].clone()}
    for transform in pipeline.transforms[9:]:
        sample = transform(**sample)
    target = form.targets(labels.to(device))
    assert [part.dtype for part in target] == [part.dtype for part in sample["segmentation"]]
    assert all(torch.equal(a[0].cpu(), b) for a, b in zip(target, sample["segmentation"], strict=True))
