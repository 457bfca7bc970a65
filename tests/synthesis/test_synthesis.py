"""The synthesis engine by its laws, and step by step against the slow implementation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunet_invariance.errors import OptionError
from nnunet_invariance.synthesis import corruptions, ensembles
from nnunet_invariance.synthesis.appearance import Appearance, apply_appearance, rescale, sample_appearance
from nnunet_invariance.synthesis.engine import SynthesisEngine
from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.synthesis.randomness import element_generator, noise_grids, white_noise
from nnunet_invariance.synthesis.separable import along_axes, linear_matrix, smooth_noise
from nnunet_invariance.synthesis.templates import TemplateBank
from tests.helpers import slow_synthesis as slow

SIZE = (32, 48, 32)


@pytest.fixture(scope="module")
def engine():
    return SynthesisEngine(SynthesisOptions(size=SIZE), seed=5)


@pytest.fixture(scope="module")
def volume():
    return torch.rand(1, 1, 16, 18, 20, generator=torch.Generator().manual_seed(0))


def array(x):
    return x[0, 0].double().numpy()


def assert_close(ours, reference, tolerance=2e-5):
    np.testing.assert_allclose(array(ours), reference, atol=tolerance * max(1, np.abs(reference).max()))


# --- the engine ---------------------------------------------------------------------------------------------------


def test_shapes_types_and_ranges(engine):
    made = engine.batch([0, 1, 2, 3])
    assert made.labels.shape == (4, 1, *SIZE)
    assert made.labels.dtype == torch.int16
    assert made.labels.min() >= 0
    assert 5 < made.labels.unique().numel() <= 42
    for view in made.views:
        assert view.shape == made.labels.shape
        assert view.dtype == torch.float32
        assert torch.equal(view.amin((1, 2, 3, 4)), torch.zeros(4))
        assert torch.equal(view.amax((1, 2, 3, 4)), torch.ones(4))
    assert not torch.allclose(*made.views, atol=0.1)


@pytest.mark.integration
def test_an_element_is_the_same_in_every_batch_and_every_engine(engine):
    together = engine.batch([7, 3, 11])
    for row, index in enumerate([7, 3, 11]):
        alone = SynthesisEngine(engine.options, seed=5).batch([index]) if row == 0 else engine.batch([index])
        assert torch.equal(alone.labels[0], together.labels[row])
        for one, many in zip(alone.views, together.views, strict=True):
            assert torch.allclose(one[0], many[row], atol=1e-5)


def test_seed_and_index_change_an_element_and_global_randomness_does_not(engine):
    torch.manual_seed(1)
    first = engine.batch([0])
    torch.manual_seed(2)
    assert torch.equal(first.views[0], engine.batch([0]).views[0])
    assert not torch.equal(first.labels, engine.batch([1]).labels)
    states = {element_generator(seed, index).initial_seed() for seed in range(20) for index in range(20)}
    assert len(states) == 400


def test_official_quirks_hide_the_first_template_and_corrupt_in_planes():
    options = SynthesisOptions(size=(32, 32, 32), official_quirks=True)
    made = SynthesisEngine(options).batch([0, 1])
    assert all(view.isfinite().all() and view.min() >= 0 and view.max() <= 1 for view in made.views)
    draw = next(
        d
        for d in (corruptions.sample_corruption(options, element_generator(0, i)) for i in range(9))
        if d.bias is not None
    )
    assert len(draw.bias) == 10
    flat = torch.ones(1, 1, 32, 32, 32)
    only_bias = replace(draw, spike=None, gamma=None, smoothing=None, ringing=None, sharpening=None, zoom=None)
    ramp = flat * torch.linspace(0.2, 1, 32)
    bent = corruptions.apply_corruption(ramp, [only_bias], options)
    assert torch.allclose(bent[:, :, :1].expand_as(bent), bent)  # constant along the first axis


@pytest.mark.parametrize("size", [(128, 128, 100), (16, 32, 32), (32, 32)])
def test_sizes_that_do_not_fit_are_refused(size):
    with pytest.raises(OptionError, match=r"at least 32 and a multiple of 16. The next that fit: \("):
        SynthesisOptions(size=size)


def test_another_divisor_allows_other_sizes():
    assert SynthesisOptions(size=(40, 56, 40), divisor=8).size_ratio == 40 / 128


# --- label ensembles ----------------------------------------------------------------------------------------------


def test_painting_equals_scipys_periodic_affine_maps(engine):
    draw = ensembles.sample_ensemble(len(engine.bank), engine.options, element_generator(0, 0))
    assert 20 <= len(draw.templates) <= 39
    ours = ensembles.paint(engine.bank, [draw], SIZE)[0, 0].numpy()
    masks = [engine.bank.mask(int(t)).numpy() for t in draw.templates]
    reference = slow.paint(masks, draw.matrices.double().numpy(), draw.shifts.double().numpy(), SIZE)
    assert (ours != reference).mean() < 1e-3  # a place between two voxels may be rounded either way
    assert len(np.unique(reference)) > 8


def test_a_template_larger_than_the_map_and_one_of_odd_extent(engine):
    rng = np.random.default_rng(0)
    masks = [rng.random((41, 9, 70)) < 0.4, rng.random((5, 12, 7)) < 0.5]
    bank = TemplateBank(masks, (32, 32, 32))
    for index in (0, 1):
        draw = ensembles.Ensemble(torch.tensor([index]), torch.eye(3)[None], torch.tensor([[1.0, -2, 40]]), None)
        ours = ensembles.paint(bank, [draw], (32, 32, 32))[0, 0].numpy()
        mask = bank.mask(index).numpy()
        np.testing.assert_array_equal(ours, slow.paint([mask], [np.eye(3)], [[1, -2, 40]], (32, 32, 32)))


def test_drawn_maps_stay_in_their_ranges():
    options = SynthesisOptions(size=(32, 32, 32))
    draws = [ensembles.sample_ensemble(10, options, element_generator(0, i)) for i in range(60)]
    volume = torch.cat([torch.linalg.det(draw.matrices).abs() for draw in draws])
    assert volume.min() >= 0.5**3 - 1e-4
    assert volume.max() <= 1.5**3 + 1e-4
    kinds = [0 if d.foreground is None else 1 if d.foreground.half_width is None else 2 for d in draws]
    assert all(kinds.count(kind) >= 10 for kind in range(3))
    assert {d.foreground.half_width for d in draws if d.foreground} == {None, 2, 3, 4}


def test_rotations_are_proper_and_composed_in_order():
    turns = ensembles.rotations(torch.rand(5, 3) * 6)
    assert torch.allclose(turns @ turns.mT, torch.eye(3).expand(5, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(turns), torch.ones(5), atol=1e-5)


def test_majority_and_median_equal_the_slow_filters():
    labels = torch.randint(0, 6, (1, 1, 7, 8, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = labels.clamp(max=4)  # one label more frequent than the others
    np.testing.assert_array_equal(ensembles.majority(labels, 4)[0, 0], slow.majority(labels[0, 0].numpy()))
    assert torch.equal(ensembles.majority(labels, 9), ensembles.majority(labels, 4))  # labels that do not occur
    median = ndimage.median_filter(labels[0, 0].numpy(), 3, mode="nearest")
    np.testing.assert_array_equal(ensembles.median_of_ids(labels, 4)[0, 0], median)


def test_majority_does_not_depend_on_the_names_of_labels():
    labels = torch.zeros(1, 1, 6, 6, 6, dtype=torch.uint8)
    labels[..., 2:, :], labels[..., 4:] = 3, 1
    swapped = torch.tensor([0, 3, 2, 1], dtype=torch.uint8)
    renamed = ensembles.majority(swapped[labels.long()], 3)
    assert torch.equal(swapped[ensembles.majority(labels, 3).long()], renamed)
    assert not torch.equal(ensembles.median_of_ids(labels, 3), torch.zeros_like(labels))


@pytest.mark.parametrize("half_width", [2, 3, 4])
def test_foreground_and_envelope_equal_the_slow_ones(half_width):
    generator = element_generator(0, 1)
    grids = noise_grids(SIZE, (8, 16), (1, 3), generator, channels=3)
    draw = ensembles.Foreground(torch.tensor([14.0, 20, 18]), 12.0, grids, half_width)
    mask = ensembles.foreground_mask([draw], SIZE, torch.device("cpu"))
    reference = slow.foreground_mask([14, 20, 18], 12, [grid.numpy() for grid in grids], SIZE)
    assert (mask[0, 0].numpy() != reference).mean() < 1e-4
    band = ensembles.envelope(mask[0], half_width)[0].numpy()
    np.testing.assert_array_equal(band, slow.envelope(mask[0, 0].numpy(), half_width))
    labels = ensembles.apply_foreground(torch.full((1, 1, *SIZE), 4, dtype=torch.uint8), [draw])[0, 0]
    assert set(labels.unique().tolist()) == {0, 5, 6}
    np.testing.assert_array_equal(labels.numpy() == 6, band)


def test_without_displacement_the_foreground_is_a_sphere_of_scaled_size():
    still = SynthesisOptions(size=(64, 64, 64), displacement=(0.0, 0.0), foreground=1.0)
    draw = ensembles.sample_ensemble(1, still, element_generator(0, 2)).foreground
    assert 24 <= draw.radius <= 35.5
    assert ((draw.centre - 32).abs() <= 16).all()
    centred = replace(draw, centre=torch.tensor([32.0, 32, 32]), radius=24.0)
    volume = ensembles.foreground_mask([centred], (64, 64, 64), torch.device("cpu")).sum().item()
    assert volume == pytest.approx(4 / 3 * np.pi * 24**3, rel=0.01)


# --- appearance ---------------------------------------------------------------------------------------------------


def test_a_label_has_its_mean_and_spread():
    labels = torch.zeros(1, 1, 32, 32, 32, dtype=torch.uint8)
    labels[:, :, 16:] = 1
    labels[:, :, 31:] = 2
    means, stds = torch.zeros(256), torch.zeros(256)
    means[:3], stds[:2] = torch.tensor([100.0, 150, 0]), torch.tensor([10.0, 20])
    draw = Appearance(means, stds, seed=3, empty_background=False, texture=[torch.zeros(1, 1, 1, 1)])
    x = apply_appearance(labels, [draw], 0.02)
    top = (100 + 10 * white_noise([3], labels.shape[1:], labels.device))[labels == 0].max()
    top = torch.maximum(top, (150 + 20 * white_noise([3], labels.shape[1:], labels.device))[labels == 1].max())
    x = x * top
    assert x[labels == 0].mean().item() == pytest.approx(100, abs=0.5)
    assert x[labels == 1].std().item() == pytest.approx(20, abs=0.5)
    empty = apply_appearance(labels, [replace(draw, empty_background=True)], 0.02)
    assert torch.equal(empty[labels == 0], torch.zeros_like(empty[labels == 0]))


def test_no_texture_at_zero_weight_and_a_smooth_one_else():
    options = SynthesisOptions(size=(32, 32, 32), std=(0.0, 0.0), empty_background=0.0)
    labels = (torch.arange(32)[:, None, None].expand(1, 1, 32, 32, 32) // 16).to(torch.uint8)
    draw = sample_appearance(options, element_generator(0, 0))
    plain = apply_appearance(labels, [draw], 0.0)
    assert torch.equal(plain.unique(), torch.tensor([0.0, 1.0]))
    reference = sum(slow.interpolate(grid[0].numpy(), (32, 32, 32)) for grid in draw.texture)
    assert_close(apply_appearance(labels, [draw], 0.02), array(plain) * (1 + 0.02 * reference))


def test_rescale_of_a_constant_is_finite():
    assert torch.equal(rescale(torch.full((1, 1, 4, 4, 4), 3.0)), torch.zeros(1, 1, 4, 4, 4))


def test_interpolation_equals_torchs_and_keeps_constants():
    grid = torch.rand(1, 1, 4, 5, 3)
    ours = along_axes(grid, [linear_matrix(g, 2 * g + 5)[None] for g in grid.shape[2:]])
    theirs = torch.nn.functional.interpolate(grid, size=ours.shape[2:], mode="trilinear", align_corners=False)
    assert torch.allclose(ours, theirs, atol=1e-6)
    constant = smooth_noise([[torch.ones(1, 1, 1, 1), torch.ones(1, 2, 2, 2)]], (8, 9, 10), torch.device("cpu"))
    assert torch.allclose(constant, torch.full((1, 1, 8, 9, 10), 2.0))


# --- corruptions --------------------------------------------------------------------------------------------------


def test_every_corruption_equals_the_slow_one(volume):
    x, rng = array(volume), np.random.default_rng(0)
    coefficients = rng.uniform(0, 0.075, 20)
    assert_close(corruptions.bias_field(volume, [torch.tensor(coefficients)]), slow.bias_field(x, coefficients))
    assert_close(corruptions.gamma(volume, [1.7]), slow.gamma(x, 1.7))
    sigmas = np.array([0.1, 0.33, 0.9])
    assert_close(corruptions.smoothing(volume, [torch.tensor(sigmas)]), slow.smoothing(x, sigmas))
    assert_close(corruptions.ringing(volume, [0.3]), slow.ringing(x, 0.3))
    drawn = torch.tensor([0.6, 0.8, 1.0, 0.5, 0.7, 0.9, 20.0])
    assert_close(corruptions.sharpening(volume, [drawn]), slow.sharpening(x, [0.6, 0.8, 1.0], [0.5, 0.7, 0.9], 20.0))
    assert_close(corruptions.low_resolution(volume, [0.63]), slow.low_resolution(x, 0.63))


@pytest.mark.parametrize("place", [(0, 0, 0), (0.3, 0.9, 0.2), (0.3, 0.9, 0.8), (0.5, 0.5, 0.5), (0.99, 0, 0.99)])
def test_spike_equals_a_changed_spectrum(volume, place):
    ours = corruptions.spike(volume, [torch.tensor([[*place, 1.05]])])
    assert_close(ours, slow.spike(array(volume), place, 1.05))


def test_zero_strength_is_identity(volume):
    assert torch.allclose(corruptions.bias_field(volume, [torch.zeros(20)]), volume)
    assert torch.allclose(corruptions.gamma(volume, [1.0]), volume, atol=1e-6)
    assert torch.equal(corruptions.smoothing(volume, [torch.zeros(3)]), volume)
    assert torch.allclose(corruptions.low_resolution(volume, [1.0]), volume, atol=1e-6)
    # In space the ball of alpha = 0 leaves the corners of the spectrum out; in a plane it leaves out nothing.
    plane = torch.rand(1, 3, 16, 16)
    assert torch.allclose(corruptions.ringing(plane, [0.0]), plane, atol=1e-5)
    smooth = corruptions.ringing(volume, [0.5])
    assert torch.allclose(corruptions.ringing(smooth, [0.0]), smooth, atol=1e-5)
    zero = torch.tensor([0.7, 0.7, 0.7, 0.6, 0.6, 0.6, 0.0])
    assert torch.allclose(corruptions.sharpening(volume, [zero]), corruptions.smoothing(volume, [zero[:3]]))


def test_a_constant_volume_goes_through_every_corruption():
    constant = torch.full((1, 1, 32, 32, 32), 0.4)
    options = SynthesisOptions(
        size=(32, 32, 32), bias_probability=1, spike_probability=1, gamma_probability=1, smoothing_probability=1,
        ringing_probability=1, sharpening_probability=1, low_resolution_probability=1,
    )  # fmt: skip
    draw = corruptions.sample_corruption(options, element_generator(0, 0))
    assert all(value is not None for value in vars(draw).values())
    x = corruptions.apply_corruption(constant, [draw], options)
    assert x.isfinite().all()
    assert 0 <= x.min() <= x.max() <= 1


def test_elements_without_a_draw_stay_as_they_are(volume):
    batch = volume.repeat(3, 1, 1, 1, 1)
    changed = corruptions.apply_to_sampled(batch, [None, 2.0, None], corruptions.gamma)
    assert torch.equal(changed[0], batch[0])
    assert torch.equal(changed[2], batch[2])
    assert_close(changed[1:2], slow.gamma(array(volume), 2.0))
    assert torch.equal(batch, volume.repeat(3, 1, 1, 1, 1))


def test_corruptions_are_drawn_with_their_probabilities_and_ranges():
    options = SynthesisOptions(size=(32, 32, 32))
    draws = [corruptions.sample_corruption(options, element_generator(1, i)) for i in range(600)]
    expected = {"bias": 0.98, "spike": 0.2, "gamma": 0.5, "smoothing": 0.5, "ringing": 0.5, "sharpening": 0.25}
    for name, probability in {**expected, "zoom": 0.333}.items():
        share = np.mean([getattr(draw, name) is not None for draw in draws])
        assert share == pytest.approx(probability, abs=0.07), name
    gammas = [draw.gamma for draw in draws if draw.gamma is not None]
    assert 0.5 <= min(gammas) < 0.55
    assert 1.95 < max(gammas) <= 2.0
    for draw in draws:
        if draw.sharpening is not None:
            assert (draw.sharpening[3:6] <= draw.sharpening[:3]).all()
            assert (draw.sharpening[3:6] >= 0.5).all()
