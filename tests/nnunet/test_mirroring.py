"""Axes are excluded from mirroring exactly where it turns one class into another that looks the same."""

import numpy as np
import pytest

from nnunet_invariance.nnunet.mirroring import LabelledImage, decide_mirroring

NAMES = {1: "left", 2: "right"}


def case(first=(2, 6), second=(14, 18), axis=2, contrast=0.0, seed=0, channels=1) -> LabelledImage:
    """Two blocks of classes 1 and 2 with equal noise, ``contrast`` standard deviations apart in the last channel."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((20, 20, 20), int)
    for value, (low, high) in ((1, first), (2, second)):
        place = [slice(8, 12)] * 3
        place[axis] = slice(low, high)
        labels[tuple(place)] = value
    image = rng.normal(size=(channels, 20, 20, 20))
    image[-1][labels == 2] += contrast
    return LabelledImage(image, labels)


@pytest.mark.parametrize("axis", range(3))
def test_the_axis_between_two_classes_that_look_alike_is_excluded(axis):
    decision = decide_mirroring([case(axis=axis, seed=s) for s in range(3)], NAMES, (0, 1, 2))
    assert decision.axes == tuple(a for a in range(3) if a != axis)
    (pair,) = decision.pairs
    assert (pair.first, pair.second, pair.axis, pair.cases) == ("left", "right", axis, 3)
    assert pair.offset == pytest.approx(-12 / 16)
    assert "left and right look alike" in str(pair)


def test_classes_that_differ_in_one_channel_may_be_mirrored():
    assert decide_mirroring([case(contrast=2)], NAMES, (0, 1, 2)).axes == (0, 1, 2)
    assert decide_mirroring([case(contrast=2, channels=2)], NAMES, (0, 1, 2)).axes == (0, 1, 2)
    assert decide_mirroring([case(contrast=0, channels=2)], NAMES, (0, 1, 2)).axes == (0, 1)


def test_classes_that_change_sides_may_be_mirrored():
    cases = [case(), case(first=(14, 18), second=(2, 6))]
    assert decide_mirroring(cases, NAMES, (0, 1, 2)).axes == (0, 1, 2)


def test_classes_around_one_centre_may_be_mirrored():
    labels = np.zeros((20, 20), int)
    labels[4:16, 4:16], labels[8:12, 8:12] = 1, 2
    image = np.random.default_rng(0).normal(size=(1, 20, 20))
    assert decide_mirroring([LabelledImage(image, labels)], NAMES, (0, 1)).axes == (0, 1)


def test_one_class_or_none_may_be_mirrored():
    only = case()
    only.labels[only.labels == 2] = 0
    assert decide_mirroring([only], NAMES, (0, 1, 2)).axes == (0, 1, 2)
    assert decide_mirroring([], NAMES, (0, 1, 2)).axes == (0, 1, 2)


def test_axes_that_nnunet_does_not_mirror_stay_out():
    assert decide_mirroring([case(axis=2)], NAMES, (0,)).axes == (0,)
    assert decide_mirroring([case(axis=2)], NAMES, ()).axes == ()


def test_mirrored_training_cases_are_the_law():
    """Mirroring all cases along an axis changes the sign of the offset and not the decision."""
    cases = [case(seed=s, axis=1) for s in range(2)]
    flipped = [LabelledImage(c.image[:, :, ::-1], c.labels[:, ::-1]) for c in cases]
    first, second = (decide_mirroring(c, NAMES, (0, 1, 2)) for c in (cases, flipped))
    assert first.axes == second.axes == (0, 2)
    assert first.pairs[0].offset == pytest.approx(-second.pairs[0].offset)
