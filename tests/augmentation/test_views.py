"""Two views and a clean view: one geometry, independent intensities, the segmentation as nnU-Net makes it."""

import functools
import operator
import pickle

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

from nnunet_invariance.augmentation.views import MultiView, split_views
from nnunet_invariance.errors import UnsupportedConfigurationError
from tests.helpers.nnunet_pipelines import CASES, stock


def sample(patch, channels, seed=0):
    """A patch larger than asked for, half of one axis padded: image 0 and segmentation -1, as the loader pads."""
    generator = torch.Generator().manual_seed(seed)
    shape = [p if len(patch) == 3 and axis == 0 and patch[0] < 8 else p + 8 for axis, p in enumerate(patch)]
    image = torch.rand((channels, *shape), generator=generator) + 0.5
    segmentation = torch.randint(0, 3, (1, *shape), generator=generator, dtype=torch.int16)
    image[..., shape[-1] // 2 :] = 0
    segmentation[..., shape[-1] // 2 :] = -1
    return {"image": image, "segmentation": segmentation}


def run(transform, inputs, seed=0):
    np.random.seed(seed)
    torch.manual_seed(seed)
    return transform(**{key: value.clone() for key, value in inputs.items()})


def views_of(transform, inputs, channels, seed=0):
    out = run(transform, inputs, seed)
    return split_views(out["image"][None], channels), out["segmentation"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_clean_view_is_the_geometry_alone(case, channels):
    pipeline, inputs = stock(**CASES[case]), sample(CASES[case]["patch"], channels)
    views, _ = views_of(MultiView(pipeline), inputs, channels, seed=3)
    geometry = [
        t for t in pipeline.transforms if "D" in type(t).__name__ or isinstance(t, SpatialTransform | MirrorTransform)
    ]
    geometry = [t for t in geometry if "Downsample" not in type(t).__name__]
    alone = run(ComposeTransforms(geometry), inputs, seed=3)
    assert torch.equal(views.clean[0], alone["image"])
    assert torch.equal(views.valid_mask[0], (alone["segmentation"] >= 0).float())
    assert views.first.shape == views.second.shape == views.clean.shape == (1, channels, *CASES[case]["patch"])
    assert 0 < views.valid_mask.mean() < 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_views_differ_from_each_other_and_from_the_clean_one(case, channels):
    inputs = sample(CASES[case]["patch"], channels)
    views, _ = views_of(MultiView(stock(**CASES[case])), inputs, channels)
    for a, b in [(views.first, views.second), (views.first, views.clean), (views.second, views.clean)]:
        difference = (a - b).abs().amax(dim=(0, *range(2, a.ndim)))
        assert (difference > 1e-3).all()  # in every channel


@pytest.mark.parametrize("case", CASES)
def test_all_views_have_one_geometry(case):
    """A bright spot stands at the same place in all views, whatever the draw."""
    patch = CASES[case]["patch"]
    inputs = sample(patch, 1)
    inputs["image"].zero_()
    inputs["segmentation"].zero_()
    centre = tuple(s // 2 for s in inputs["image"].shape[1:])
    inputs["image"][(0, *(slice(c - 1, c + 2) for c in centre))] = 10
    pipeline = stock(**CASES[case])
    pipeline.transforms = [t for t in pipeline.transforms if "Gamma" not in type(getattr(t, "transform", t)).__name__]
    for seed in range(5):  # without gamma: its inversion turns the spot dark
        views, _ = views_of(MultiView(pipeline), inputs, 1, seed)
        first, second, clean = (
            (v[0, 0] > v.max() / 2).nonzero().float().mean(0) for v in (views.first, views.second, views.clean)
        )
        assert (first - clean).abs().max() < 1
        assert (second - clean).abs().max() < 1


@pytest.mark.parametrize("case", CASES)
def test_segmentation_is_what_nnunet_makes_of_it(case):
    patch, dummy = CASES[case]["patch"], CASES[case]["dummy"]
    pipeline, inputs = stock(patch, dummy), sample(patch, 2)
    _, segmentation = views_of(MultiView(pipeline), inputs, 2, seed=5)
    kept = [t for t in pipeline.transforms if not isinstance(t, RandomTransform)]
    expected = run(ComposeTransforms(kept), inputs, seed=5)["segmentation"]
    assert len(segmentation) == 2
    assert all(torch.equal(a, b) for a, b in zip(segmentation, expected, strict=True))
    assert all(s.min() >= 0 for s in segmentation)


def test_order_within_each_part_is_nnunets():
    pipeline = stock((12, 16, 20), False, mask=[True])
    view = MultiView(pipeline)
    parts = [view.geometry, view.intensity, view.masking, view.labels]
    order = {id(t): i for i, t in enumerate(pipeline.transforms)}
    places = [[order[id(t)] for t in part.transforms] for part in parts]
    assert all(p == sorted(p) for p in places)
    assert sorted(functools.reduce(operator.iadd, places, [])) == list(range(len(pipeline.transforms)))
    assert [len(p) for p in places] == [2, 7, 1, 2]


def test_outside_of_the_nonzero_mask_every_view_is_zero_where_nnunet_masks():
    inputs = sample((12, 16, 20), 2)
    view = MultiView(stock((12, 16, 20), False, mask=[True, False]))
    views, _ = views_of(view, inputs, 2)
    outside = views.valid_mask[0, 0] == 0
    for image in (views.first, views.second, views.clean):
        assert (image[0, 0][outside] == 0).all()
    assert (views.first[0, 1][outside] != 0).any()


def test_the_input_and_the_clean_view_survive_transforms_that_work_in_place():
    inputs = sample((12, 16, 20), 1)
    pipeline = stock((12, 16, 20), False)
    pipeline.transforms = [t for t in pipeline.transforms if not isinstance(t, SpatialTransform | MirrorTransform)]
    before = inputs["image"].clone()
    view = MultiView(pipeline)
    view.labels.transforms = []
    clean = split_views(view(**inputs)["image"][None], 1).clean[0]
    assert torch.equal(clean, before)
    assert torch.equal(inputs["image"], before)


def test_survives_pickling():
    view, inputs = MultiView(stock((12, 16, 20), False)), sample((12, 16, 20), 1)
    again = pickle.loads(pickle.dumps(view))
    assert torch.equal(run(view, inputs)["image"], run(again, inputs)["image"])


class Unknown(BasicTransform):
    """Touches image and segmentation, nobody knows how."""


def test_refuses_what_it_does_not_know():
    pipeline = stock((12, 16, 20), False)
    with pytest.raises(UnsupportedConfigurationError, match=r'Unknown changes neither.*Found: .*Set "aux": false'):
        MultiView(ComposeTransforms([*pipeline.transforms[:1], RandomTransform(Unknown()), *pipeline.transforms[1:]]))


def test_refuses_a_cascade():
    with pytest.raises(UnsupportedConfigurationError, match="MoveSegAsOneHotToDataTransform"):
        MultiView(stock((12, 16, 20), False, is_cascaded=True, foreground_labels=[1, 2]))


@pytest.mark.parametrize("late", [0, 1])
def test_refuses_another_order(late):
    pipeline = stock((12, 16, 20), False)
    moved = pipeline.transforms[late]  # the spatial transform, or noise, after the label transforms
    rest = [t for t in pipeline.transforms if t is not moved]
    with pytest.raises(UnsupportedConfigurationError, match="comes after the labels transforms"):
        MultiView(ComposeTransforms([*rest, moved]))
    assert isinstance(rest[-2], RemoveLabelTansform)
