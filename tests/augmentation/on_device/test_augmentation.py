"""The whole augmentation on the device: nnU-Net's probabilities and distributions, views, targets, refusals."""

import dataclasses

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from scipy.stats import ks_2samp
from torch import Tensor

from nnunet_invariance.augmentation.missing_modalities import ZeroMissingChannels
from nnunet_invariance.augmentation.on_device import RawPatches, device_form
from nnunet_invariance.augmentation.views import MultiView, split_views
from nnunet_invariance.errors import UnsupportedConfigurationError
from tests.helpers.device_emulator import DEVICE, Emulator, to_device
from tests.helpers.nnunet_pipelines import CASES, stock

LABELS = (0, 1, 2)
#: Name, probability in an image, probability of a channel, and range of nnU-Net 2.8.1, in its order.
TRANSFORMS = [
    ("Noise", 0.1, 1, (0, 0.1)),
    ("Blur", 0.2, 0.5, (0.5, 1.0)),
    ("Brightness", 0.15, 1, (0.75, 1.25)),
    ("Contrast", 0.15, 1, (0.75, 1.25)),
    ("LowResolution", 0.25, 0.5, (0.5, 1.0)),
    ("Gamma", 0.1, 1, (0.7, 1.5)),
    ("Gamma", 0.3, 1, (0.7, 1.5)),
]


def generator(seed: int = 0) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def batch_for(
    case: str, channels: int = 1, samples: int = 2, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Enlarged patches with a smooth structure, and labels that are -1 along one border."""
    patch, dummy = CASES[case]["patch"], CASES[case]["dummy"]
    size = [p if dummy and axis == 0 else p + 8 for axis, p in enumerate(patch)]
    coarse = torch.rand((samples, channels, *(max(2, s // 3) for s in size)), generator=generator())
    image = torch.nn.functional.interpolate(coarse, size) + 0.2 * torch.rand(
        (samples, channels, *size), generator=generator()
    )
    labels = (image[:, :1] * 2).round().clamp(0, 2).to(torch.int16)
    labels[..., : size[-1] // 3] = -1
    return image.to(device), labels.to(device)


# ---- nnU-Net's probabilities and distributions -----------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_probabilities_and_ranges_are_nnunets(case):
    form = device_form(stock(**CASES[case], certain=False), LABELS)
    found = []
    for part in form.intensity:
        scalar = getattr(part, dataclasses.fields(part)[2].name)
        found.append(
            (type(part).__name__, part.probability, part.channel_probability, getattr(scalar, "contrast_range", scalar))
        )
    assert found == TRANSFORMS
    assert [part.inverted for part in form.intensity[-2:]] == [True, False]
    limit = np.pi if CASES[case]["dummy"] else np.pi / 6
    geometry = form.geometry
    assert (geometry.p_rotation, geometry.rotation, geometry.p_scaling, geometry.scaling) == (
        0.2, (-limit, limit), 0.2, (0.7, 1.4)
    )  # fmt: skip
    assert geometry.in_plane == CASES[case]["dummy"]
    assert form.intensity[4].kept_axes == ((0,) if CASES[case]["dummy"] else ())
    assert geometry.mirror_axes == tuple(range(len(CASES[case]["patch"])))


def test_transforms_happen_as_often_as_their_probabilities_say():
    form, images, channels = device_form(stock(**CASES["3d"], certain=False), LABELS), 4000, 2
    draw = form.sample((images, channels, 20, 24, 28), generator())

    def near(count: int, trials: int, probability: float) -> bool:
        return abs(count - trials * probability) < 4 * (trials * probability * (1 - probability)) ** 0.5

    assert near(len(draw.geometry.warped), images, 1 - 0.8**2)
    for axis in form.geometry.mirror_axes:
        assert near(sum(axis in axes for axes in draw.geometry.mirrored), images, 0.5)
    for change, (_, probability, channel_probability, _) in zip(draw.changes, TRANSFORMS, strict=True):
        happened = len(change.rows[:, 0].unique())
        assert near(happened, images, probability * (1 - (1 - channel_probability) ** channels))
        single = (change.rows[:, 1] == 0).sum()
        assert near(int(single), images, probability * channel_probability)


def statistics(image: Tensor) -> list[float]:
    """Moments of an image (*spatial), and the share of its power at high frequencies along each axis."""
    image = image.double()
    centred = image - image.mean()
    power = torch.fft.fftn(centred).abs().square()
    numbers = [image.mean(), image.std(), centred.pow(3).mean() / centred.std() ** 3, image.amin(), image.amax()]
    for axis, size in enumerate(image.shape):
        high = power.narrow(axis, size // 4, size - 2 * (size // 4))
        numbers.append(high.sum() / power.sum())
    return [float(number) for number in numbers]


def assert_same_distribution(ours: list[list[float]], theirs: list[list[float]]) -> None:
    """Two-sample Kolmogorov-Smirnov tests of every statistic; differences in the fifth digit do not count."""
    for first, second in zip(np.array(ours).T, np.array(theirs).T, strict=True):
        scale = max(abs(second).max(), 1e-6)
        assert ks_2samp(np.round(first / scale, 4), np.round(second / scale, 4)).pvalue > 1e-3


def ours_and_theirs(pipeline: ComposeTransforms, case: str, repeats: int, device) -> tuple[list, list]:
    """Statistics of many augmentations of one patch, on the device and by batchgeneratorsv2."""
    form, (image, labels) = device_form(pipeline, LABELS), batch_for(case, samples=1)
    many, source = (part.expand(repeats, *part.shape[1:]).to(device) for part in (image, labels)), generator(1)
    data, _ = form(*many, source)
    np.random.seed(1)
    torch.manual_seed(1)
    theirs = [pipeline(image=image[0].clone(), segmentation=labels[0].clone())["image"][0] for _ in range(repeats)]
    return [statistics(part[0].cpu()) for part in data], [statistics(part) for part in theirs]


@pytest.mark.parametrize("index", range(1, 8), ids=[f"{i} {name}" for i, (name, *_) in enumerate(TRANSFORMS)])
def test_each_intensity_transform_has_the_distribution_of_nnunets(index, device):
    pipeline = stock(**CASES["3d"], certain=False)
    pipeline.transforms[0].p_rotation = pipeline.transforms[0].p_scaling = 0
    pipeline.transforms[index].apply_probability = 1
    pipeline.transforms = [pipeline.transforms[i] for i in (0, index, 9)]
    assert_same_distribution(*ours_and_theirs(pipeline, "3d", 150, device))


@pytest.mark.integration
@pytest.mark.parametrize("case", CASES)
def test_the_geometry_has_the_distribution_of_nnunets(case, device):
    pipeline = stock(**CASES[case])
    pipeline.transforms = [t for t in pipeline.transforms if not isinstance(t, RandomTransform)]
    assert_same_distribution(*ours_and_theirs(pipeline, case, 120, device))


@pytest.mark.integration
@pytest.mark.parametrize("case", CASES)
def test_the_whole_has_the_distribution_of_nnunets(case, device):
    assert_same_distribution(*ours_and_theirs(stock(**CASES[case], certain=False), case, 200, device))


# ---- one batch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("case", CASES)
def test_without_randomness_a_batch_equals_nnunets(case, views, device):
    pipeline = stock(**CASES[case], certain=False, mask=[True, False])
    pipeline.transforms = [
        t for t in pipeline.transforms if not isinstance(t, RandomTransform) and "Mirror" not in str(type(t))
    ]
    spatial = next(t for t in pipeline.transforms if hasattr(t, "p_rotation"))
    spatial.p_rotation = spatial.p_scaling = 0
    transform = MultiView(pipeline, channels=2) if views else pipeline
    image, labels = batch_for(case, 2, device=device)
    data, target = device_form(transform, LABELS)(image, labels, generator())
    for index in range(len(image)):
        sample = transform(image=image[index].cpu().clone(), segmentation=labels[index].cpu().clone())
        assert torch.equal(data[index].cpu(), sample["image"])
        assert all(torch.equal(a[index].cpu(), b) for a, b in zip(target, sample["segmentation"], strict=True))
        assert [part.dtype for part in target] == [part.dtype for part in sample["segmentation"]]


@pytest.mark.parametrize("case", CASES)
def test_a_seed_repeats_a_batch_and_the_input_stays(case, device):
    form = device_form(MultiView(stock(**CASES[case])), LABELS)
    image, labels = batch_for(case, 2, device=device)
    before = image.clone(), labels.clone()
    first, again, other = (form(image, labels, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(image, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize("case", CASES)
def test_views_share_the_geometry_and_nothing_else(case, device):
    form = device_form(MultiView(stock(**CASES[case])), LABELS)
    image, labels = batch_for(case, 3, device=device)
    draw = form.sample(image.shape, generator())
    data, target = form.apply(image, labels, draw)
    views = split_views(data, 3)
    clean, _ = dataclasses.replace(form, views=0).apply(image, labels, draw._replace(changes=()))
    assert torch.equal(views.clean, clean)
    for a, b in [(views.first, views.second), (views.first, views.clean), (views.second, views.clean)]:
        assert ((a - b).abs().flatten(2).amax(2) > 1e-4).all()  # every channel of every sample
    outside = views.valid_mask == 0
    assert 0 < outside.float().mean() < 1
    assert not (target[0][outside] > 0).any()


def test_the_second_view_of_a_stored_view_starts_from_it(device):
    form = device_form(MultiView(ComposeTransforms(stock(**CASES["3d"]).transforms[:1]), channels=1), LABELS)
    image, labels = batch_for("3d", 2, device=device)
    views = split_views(form(image, labels, generator())[0], 1)
    assert torch.equal(views.first, views.clean)
    assert not torch.equal(views.first, views.second)
    twice = RawPatches(1)(image=image[0], segmentation=labels[0])
    assert torch.equal(twice["image"], image[0])
    assert torch.equal(RawPatches(1)(image=image[0, :1])["image"], image[0, [0, 0]])


def test_one_augmented_view_leaves_the_second_clean(device):
    form = device_form(MultiView(stock(**CASES["3d"]), second=False), LABELS)
    image, labels = batch_for("3d", 2, device=device)
    views = split_views(form(image, labels, generator())[0], 2)
    assert torch.equal(views.second, views.clean)
    assert not torch.equal(views.first, views.clean)


def test_missing_channels_stay_zero(device):
    form = device_form(ZeroMissingChannels(MultiView(stock(**CASES["3d"]))), LABELS)
    image, labels = batch_for("3d", 2, device=device)
    image[0, 1] = 0.3
    views = split_views(form(image, labels, generator())[0], 2)
    for view in views[:3]:
        assert (view[0, 1] == 0).all()
        assert all(view[index].std() > 0 for index in ((0, 0), (1, 0), (1, 1)))
    assert views.valid_mask[0].any()
    image, labels = batch_for("3d", 1, device=device)
    alone = split_views(form(torch.ones_like(image), labels, generator())[0], 1)
    assert not alone.first.any()
    assert alone.valid_mask.any()


@pytest.mark.parametrize("case", CASES)
def test_the_host_never_waits_for_the_device(case):
    form = device_form(ZeroMissingChannels(MultiView(stock(**CASES[case], mask=[True]))), LABELS)
    image, labels = batch_for(case)
    draw = form.sample(image.shape, generator())
    with Emulator() as emulator:
        data, target = form.apply(to_device(image), to_device(labels), draw)
    assert {part.device for part in (data, *target)} == {DEVICE}
    assert emulator.total == 0, emulator.waits


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_unknown_transforms_and_settings_are_refused():
    pipeline = stock(**CASES["3d"])
    pipeline.transforms[0].p_elastic_deform = 0.1
    with pytest.raises(UnsupportedConfigurationError, match=r"SpatialTransform has p_elastic_deform=0.1.*expected 0"):
        device_form(pipeline, LABELS)
    pipeline = stock(**CASES["3d"])
    pipeline.transforms[6].transform.p_invert_image = 0.5
    with pytest.raises(UnsupportedConfigurationError, match=r"GammaTransform has p_invert_image=0.5"):
        device_form(pipeline, LABELS)
    pipeline = stock(**CASES["3d"])
    pipeline.transforms[2].transform.blur_sigma = max
    with pytest.raises(UnsupportedConfigurationError, match=r"blur_sigma=.*a range of two numbers"):
        device_form(pipeline, LABELS)
    with pytest.raises(UnsupportedConfigurationError, match=r'MoveSegAsOneHot.*"augmentation": "nnunet"'):
        device_form(stock(**CASES["3d"], is_cascaded=True, foreground_labels=[1, 2]), LABELS)
    with pytest.raises(UnsupportedConfigurationError, match="has no SpatialTransform"):
        device_form(ComposeTransforms([]), LABELS)
