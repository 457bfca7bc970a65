"""Shapes of implicit formulas: closed forms, symmetries, and laws over their parameters."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_invariance.errors import OptionError
from nnunet_invariance.synthesis.engine import SynthesisEngine, made_templates
from nnunet_invariance.synthesis.formulas import FORMULAS, JULIA_SCALE, evaluate, formula_masks, sample_parameters
from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.synthesis.randomness import element_generator

CPU = torch.device("cpu")
SIDE = 32
names = st.sampled_from(sorted(FORMULAS))
seeds = st.integers(0, 2**32)
quick = settings(max_examples=25, deadline=None)


def sampled(name, seed, **changes):
    """Parameters of one shape in a space that is not bent."""
    drawn = sample_parameters(FORMULAS[name], element_generator(seed, 0)) | {"warp": torch.zeros(3, 3)}
    return drawn | {key: torch.tensor(float(value)) for key, value in changes.items()}


def value(name, points, shape):
    """The formula at points (N, 3), as (N,)."""
    column = {key: tensor.reshape(1, 1, 1, 1) for key, tensor in shape.items() if key != "warp"}
    return FORMULAS[name].function(points.T.reshape(1, 3, -1, 1, 1), column).flatten()


def volume(name, shape, side=64):
    """In units of the cube [-1, 1]^3, by counting voxels; the outer voxel centres are on the faces of the cube."""
    return (evaluate(FORMULAS[name], [shape], side, CPU) < 0).sum().item() * (2 / (side - 1)) ** 3


def random_points(seed, n=200):
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ---- closed forms --------------------------------------------------------------------------------------------------


@quick
@given(st.floats(1.25, 6), st.floats(1.25, 6), st.floats(0.6, 0.8), st.floats(0.6, 0.8), st.floats(0.6, 0.8))
def test_a_superquadric_has_its_volume(p, q, a, b, c):
    def beta(x, y):
        return math.exp(math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y))

    expected = 2 * a * b * c * (2 / q) * (2 / p) * beta(1 / q + 1, 2 / q) * beta(1 / p, 1 / p)
    assert volume("superquadric", sampled("superquadric", 0, p=p, q=q, a=a, b=b, c=c)) == pytest.approx(
        expected, rel=0.06
    )


def test_rings_and_solids_of_revolution_have_their_volumes():
    torus = sampled("ring", 0, radius=0.5, thickness=0.2, depth=0)
    assert volume("ring", torus) == pytest.approx(2 * math.pi**2 * 0.5 * 0.2**2, rel=0.04)
    solid = sampled("revolution", 0, radius=0.4, depth=0.5, frequency=math.pi / 0.7, phase=0, height=0.7)
    # the cosine has a whole period: the mean of its square is 1/2
    expected = math.pi * 0.4**2 * 1.4 * (1 + 0.5**2 / 2)
    assert volume("revolution", solid) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("beads", [0, 1])
def test_a_julia_set_equals_a_slow_loop_of_complex_numbers(beads):
    shape = sampled("julia", 3, turn=0, beads=beads)
    points = random_points(0) * torch.tensor([1.0, 1.0, 0.0])  # in the plane of real numbers and one imaginary unit
    multiplier = complex(*(shape["modulus"] * torch.tensor([shape["angle"].cos(), shape["angle"].sin()])).tolist())
    constant = multiplier / 4 - 1 if beads else multiplier / 2 - multiplier * multiplier / 4
    found = value("julia", points, shape) < 0
    for point, inside in zip(points.tolist(), found.tolist(), strict=True):
        number = JULIA_SCALE * complex(point[0], point[1])
        for _ in range(8):
            number = number * number + constant if abs(number) < 4 else number
        assert inside == (abs(number) < 2)
    assert 0 < found.float().mean() < 1


# ---- laws ----------------------------------------------------------------------------------------------------------


@quick
@given(names, seeds)
def test_every_shape_is_a_part_of_the_cube_that_does_not_reach_its_faces(name, seed):
    shape = sample_parameters(FORMULAS[name], element_generator(seed, 0))
    inside = evaluate(FORMULAS[name], [shape], SIDE, CPU)[0] < 0
    assert 0.001 < inside.float().mean() < 0.6
    faces = [inside.select(axis, end) for axis in range(3) for end in (0, -1)]
    assert not torch.stack(faces).any()


@quick
@given(seeds)
def test_stars_and_rings_look_the_same_after_a_turn_by_one_arm(seed):
    for name, changes in (("star prism", {"twist": 0.0}), ("ring", {})):
        shape = sampled(name, seed, **changes)
        angle = 2 * math.pi / shape["arms"].round().item()
        turn = torch.tensor([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
        points = random_points(seed)
        assert torch.allclose(value(name, points, shape), value(name, points @ turn.T, shape), atol=1e-3)


@quick
@given(seeds)
def test_a_julia_set_is_symmetric_and_contains_the_centre(seed):
    shape = sampled("julia", seed)
    points = random_points(seed)
    assert torch.equal(value("julia", points, shape) < 0, value("julia", -points, shape) < 0)
    assert value("julia", torch.zeros(1, 3), shape) < 0


@quick
@given(names, seeds)
def test_a_shape_does_not_depend_on_the_shapes_beside_it(name, seed):
    shapes = [sample_parameters(FORMULAS[name], element_generator(seed, index)) for index in range(3)]
    together = evaluate(FORMULAS[name], shapes, 12, CPU)
    alone = evaluate(FORMULAS[name], shapes[1:2], 12, CPU)
    assert torch.equal(together[1:2], alone)


# ---- banks ---------------------------------------------------------------------------------------------------------


def test_masks_depend_on_the_seed_and_a_core_lies_inside_of_its_shell():
    masks, again, other = formula_masks(SIDE), formula_masks(SIDE), formula_masks(SIDE, seed=1)
    assert len(masks) == 9 * len(FORMULAS)
    assert all((a == b).all() for a, b in zip(masks, again, strict=True))
    assert any((a != b).any() for a, b in zip(masks, other, strict=True))
    for first in range(0, len(masks), 9):
        for shell, core in zip(masks[first : first + 3], masks[first + 3 : first + 6], strict=True):
            assert not (shell & core).any()


@pytest.mark.integration
def test_engines_use_the_shapes_that_are_named(tmp_path):
    options = {kind: SynthesisOptions(size=(32, 32, 32), shapes=kind) for kind in ("procedural", "formula", "mixed")}
    banks = {kind: made_templates(one, seed=0) for kind, one in options.items()}
    assert len(banks["mixed"]) == len(banks["procedural"]) + len(banks["formula"])
    assert torch.equal(banks["mixed"].flat, torch.cat((banks["procedural"].flat, banks["formula"].flat)))
    made = SynthesisEngine(options["formula"]).batch([0])
    assert len(made.labels.unique()) > 5
    assert not torch.equal(made.labels, SynthesisEngine(options["procedural"]).batch([0]).labels)
    with pytest.raises(
        OptionError, match="'shapes' is 'mixed'; expected 'procedural', because the shapes are those of"
    ):
        SynthesisEngine(options["mixed"], templates=tmp_path)
