"""Laws that hold on a whole domain of shapes, positions and names, tested on generated examples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_invariance.augmentation.cube_group import apply_symmetry, invert_symmetry, symmetries
from nnunet_invariance.nnunet.sliding_window import sliding_window, window_starts
from nnunet_invariance.pretraining.data.crops import crop, crop_origin, matched_origins
from nnunet_invariance.registry import parse_trainer_name, trainers
from nnunet_invariance.weights.position_tables import resize_positions

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
side = st.integers(1, 12)
box = st.tuples(side, side, side)


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Sizes of an image and of a window no larger than it, both multiples of ``align``."""
    axes = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(0, 5)), min_size=2, max_size=3))
    align = tuple(multiple for multiple, _, _ in axes)
    window = tuple(multiple * cells for multiple, cells, _ in axes)
    return tuple(w + multiple * more for w, (multiple, _, more) in zip(window, axes, strict=True)), window, align


@few
@given(windows())
def test_windows_cover_every_voxel_and_average_to_the_function_of_a_voxel(case):
    size, window, align = case
    covered = np.zeros(size, bool)
    for start in window_starts(size, window, align):
        assert all(first % multiple == 0 for first, multiple in zip(start, align, strict=True))
        assert all(first + w <= n for first, w, n in zip(start, window, size, strict=True))
        covered[tuple(slice(first, first + w) for first, w in zip(start, window, strict=True))] = True
    assert covered.all()
    image = torch.randn(2, *size)
    (result,) = sliding_window(lambda x: [3 * x - 1], image, window, align=align)
    torch.testing.assert_close(result, 3 * image - 1)


@few
@given(box, st.booleans())
def test_symmetries_of_a_box_are_a_group_whose_elements_are_undone_exactly(size, reflections):
    elements = symmetries([size], reflections)
    voxels = torch.arange(float(np.prod(size))).view(1, 1, *size).expand(len(elements), -1, -1, -1, -1)
    moved = apply_symmetry(voxels, elements)
    assert torch.equal(invert_symmetry(moved, elements), voxels)
    assert torch.equal(moved[0], voxels[0])
    images = {tuple(image.flatten().tolist()) for image in moved}
    assert 48 % len(elements) == 0
    for element in elements[torch.randint(len(elements), (2,))]:
        twice = apply_symmetry(moved, element.expand(len(elements), -1))
        assert {tuple(image.flatten().tolist()) for image in twice} == images


@few
@given(box, box, st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3))
def test_a_crop_stays_inside_and_contains_its_centre(shape, size, where):
    centre = np.floor(np.multiply(where, shape))
    low = crop_origin(shape, centre, size)
    volume = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    image, valid_mask = crop(volume, low, size)
    assert image.shape == valid_mask.shape == (1, *size)
    assert valid_mask.sum() == np.prod(np.minimum(shape, size))  # as much of the volume as fits
    assert not image[~valid_mask].any()
    position = tuple((centre - low).astype(int))
    assert all(0 <= p < s for p, s in zip(position, size, strict=True))
    assert image[(0, *position)] == volume[(0, *centre.astype(int))]


@few
@given(st.tuples(side, side), st.tuples(st.floats(0, 1), st.floats(0, 1)), side)
def test_matched_crops_show_both_points_at_one_position_and_lose_the_fewest_voxels(lengths, where, size):
    points = [np.array([w * (n - 1)]) for w, n in zip(where, lengths, strict=True)]
    origins = matched_origins([[n] for n in lengths], points, [size])
    first, second = (round(float(point[0])) - low[0] for point, low in zip(points, origins, strict=True))
    assert first == second

    def lost(offset: int) -> int:
        """Voxels of both crops outside their volumes, counted one by one."""
        lows = [round(float(point[0])) - size // 2 + offset for point in points]
        return sum(not 0 <= v < n for low, n in zip(lows, lengths, strict=True) for v in range(low, low + size))

    assert lost(size // 2 - first) == min(lost(offset) for offset in range(-40, 41))


@few
@given(box, box)
def test_a_resized_position_table_keeps_constants_and_its_own_grid(found, wanted):
    table = torch.randn(1, int(np.prod(found)), 3)
    torch.testing.assert_close(resize_positions(table, found, found), table)
    constant = torch.tensor([1.0, -2.0, 3.0]).expand(1, int(np.prod(found)), 3)
    torch.testing.assert_close(resize_positions(constant, found, wanted)[0, 0], constant[0, 0])
    assert resize_positions(table, found, wanted).shape == (1, np.prod(wanted), 3)


@pytest.mark.parametrize("name", sorted(trainers()))
@few
@given(st.booleans(), st.none() | st.integers(1, 100_000))
def test_the_parts_of_a_trainer_name_are_those_it_was_made_of(name, scratch, epochs):
    length = "" if epochs is None else f"_{epochs}epoch" + "s" * (epochs > 1)
    parsed = parse_trainer_name(f"{name}{'_scratch' * scratch}{length}")
    if scratch and not trainers()[name].has_scratch_twin:
        assert parsed is None
    else:
        assert parsed == (trainers()[name], scratch, epochs)
