"""Each intervention against its formula written as loops, against the published distribution, and on real volumes."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from nnunet_invariance.augmentation.interventions import (
    GIN,
    GMM,
    INTERVENTIONS,
    IPA,
    Clusters,
    Domain,
    Mixed,
    RandConv,
    SLAug,
    match_statistics,
)
from nnunet_invariance.augmentation.interventions.base import coarse_axes
from nnunet_invariance.augmentation.interventions.clusters import ClustersParameters
from nnunet_invariance.augmentation.interventions.fields import interpolate, sample_control_points
from nnunet_invariance.augmentation.interventions.ipa import blend_field
from nnunet_invariance.augmentation.interventions.slaug import curve_tables, saliency_fusion
from nnunet_invariance.augmentation.interventions.tissues import find_tissues
from tests.helpers import slow_interventions as slow

SHAPES = [(2, 2, 5, 6), (2, 1, 4, 5, 6)]
DATA = Path(__file__).parents[3] / "shared/data"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scene(shape, seed=0, classes=3):
    image = torch.randn(shape, generator=generator(seed)) * 2 + 1
    labels = torch.randint(classes, (shape[0], 1, *shape[2:]), generator=generator(seed + 1))
    return image, labels


# ---- against the references ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_gin(shape):
    image, labels = scene(shape)
    seen = set()
    for seed in range(4):
        params = GIN().sample(Domain(shape, 3), generator(seed))
        seen |= {weight.shape[-1] for weight in params.weights}
        assert torch.allclose(GIN().apply(image, labels, params), slow.gin(image, params), atol=2e-4)
    assert seen == {1, 3}
    neutral = dataclasses.replace(params, alpha=torch.zeros(2))
    assert torch.allclose(GIN().apply(image, labels, neutral), image, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_gin_ipa(shape):
    image, labels = scene(shape)
    params = IPA().sample(Domain(shape, 3), generator(3))
    field = interpolate(params.points, image)
    first, second = slow.gin(image, params.first), slow.gin(image, params.second)
    expected = torch.zeros_like(image)
    for b in range(shape[0]):
        values = field[b, 0].exp()
        for place in slow.voxels(image):
            blend = (values[place] - values.min()) / (values.max() - values.min())
            for c in range(shape[1]):
                at = (b, c, *place)
                expected[at] = blend * first[at] + (1 - blend) * second[at]
    assert torch.allclose(IPA().apply(image, labels, params), expected, atol=5e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_randconv(shape):
    image, labels = scene(shape)
    sizes = set()
    for seed in range(12):
        params = RandConv().sample(Domain(shape, 3), generator(seed))
        sizes.add(params.weight.shape[-1])
    channels = shape[1]
    expected = []
    for b in range(shape[0]):
        weight = params.weight[b * channels : (b + 1) * channels].double().numpy()
        convolved = torch.from_numpy(slow.convolution(image[b].double().numpy(), weight, [0.0] * channels)).float()
        expected.append(params.alpha[b] * convolved + (1 - params.alpha[b]) * image[b])
    assert torch.allclose(RandConv().apply(image, labels, params), torch.stack(expected), atol=1e-4)
    assert sizes == {1, 3, 5, 7}


def test_randconv_weights_have_the_standard_deviation_of_one_over_root_fan_in():
    sampled = [RandConv().sample(Domain((64, 2, 8, 8, 8), 1), generator(seed)) for seed in range(12)]
    for params in sampled:
        fan_in = 2 * params.weight.shape[-1] ** 3
        assert params.weight.std() * math.sqrt(fan_in) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("shape", SHAPES)
def test_tissues(shape):
    image, labels = scene(shape)
    labels[1][labels[1] == 2] = 0  # a label that a sample does not have
    assert torch.equal(find_tissues(image, labels, 3), slow.tissues(image, labels, 3))


@pytest.mark.parametrize("shape", SHAPES)
def test_clusters(shape):
    image, labels = scene(shape)
    params = Clusters().sample(Domain(shape, 3, coarse=(0,)), generator())
    assert params.kernel[0] == 1
    tissues = slow.tissues(image, labels, 3)
    factor, offset = torch.zeros_like(image), torch.zeros_like(image)
    for b, c in itertools.product(*map(range, shape[:2])):
        mean, std = image[b, c].mean(), image[b, c].std(correction=0)
        for k in tissues[b, c].unique().tolist():
            inside = tissues[b, c] == k
            scale, level = params.scales[b, c, k], mean + std * params.levels[b, c, k]
            factor[b, c][inside] = scale
            offset[b, c][inside] = level - scale * image[b, c][inside].mean()
    expected = torch.zeros_like(image)
    for b, c in itertools.product(*map(range, shape[:2])):
        for place in slow.voxels(image):
            box = tuple(slice(max(p - k // 2, 0), p + k // 2 + 1) for p, k in zip(place, params.kernel, strict=True))
            at = (b, c, *place)
            expected[at] = factor[(b, c, *box)].mean() * image[at] + offset[(b, c, *box)].mean()
    assert torch.allclose(Clusters().apply(image, labels, params), expected, atol=1e-4)


def test_clusters_keep_texture_and_move_levels():
    """Inside one tissue the image is the old one, times a factor and plus a level."""
    image = torch.randn(1, 1, 16, 16, generator=generator()) * 0.01
    labels = torch.ones(1, 1, 16, 16, dtype=torch.long)
    levels = torch.full((1, 1, 8), 1.5)
    params = ClustersParameters(2, levels, torch.full((1, 1, 8), -0.7), (3, 3))
    styled = Clusters().apply(image, labels, params)
    inner = find_tissues(image, labels, 2) == 6
    means = image[inner].mean()
    unblurred = image.mean() + image.std(correction=0) * 1.5 - 0.7 * (image - means)
    alone = inner & (torch.nn.functional.avg_pool2d(inner.float(), 3, 1, 1, count_include_pad=False) == 1)
    assert alone.any()
    assert torch.allclose(styled[alone], unblurred[alone], atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gmm(shape):
    image, labels = scene(shape)
    params = GMM().sample(Domain(shape, 3), generator())
    noise = torch.randn(shape, generator=generator(params.noise_seed))
    bias, tissues = interpolate(params.bias, image), slow.tissues(image, labels, 3)
    painted = torch.zeros_like(image)
    for b, c in itertools.product(*map(range, shape[:2])):
        for place in slow.voxels(image):
            at, k = (b, c, *place), tissues[(b, c, *place)]
            value = (params.means[b, c, k] + params.stds[b, c, k] * noise[at]) * math.exp(bias[(b, 0, *place)])
            painted[at] = min(max(float(value), 0), 300)
        painted[b, c] = slow.unit(painted[b, c]) ** params.gamma[b, c]
    assert torch.allclose(GMM().apply(image, labels, params), painted, atol=1e-4)
    assert ((params.means >= 25) & (params.means < 225)).all()
    assert ((params.stds >= 5) & (params.stds < 25)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_slaug(shape):
    image, labels = scene(shape)
    params = SLAug().sample(Domain(shape, 3), generator(1))
    tolerance = 1 / 255  # percentiles come out of 256 levels
    whole = SLAug().apply_global(image, params)
    assert torch.allclose(whole, slow.slaug(image, torch.zeros_like(labels), params.global_curves), atol=tolerance)
    local = SLAug().apply(image, labels, params)
    assert torch.allclose(local, slow.slaug(image, labels, params.local_curves), atol=tolerance)
    assert params.local_curves.inverted[:, :, 0].all()
    assert not params.global_curves.inverted.any()


def test_slaug_curves_increase_unless_inverted():
    points = torch.rand(50, 2, 2, generator=generator())
    rising = curve_tables(points, torch.zeros(50, dtype=torch.bool))
    assert (rising.diff(dim=-1) >= -1e-6).all()
    falling = curve_tables(points, torch.ones(50, dtype=torch.bool))
    assert torch.allclose(falling[:, 0], torch.ones(50))
    assert torch.allclose(falling[:, -1], torch.zeros(50))


@pytest.mark.parametrize("shape", [(2, 2, 6, 9), (2, 1, 3, 6, 9)])
def test_slaug_fusion(shape):
    whole, local = torch.rand(shape, generator=generator()), torch.rand(shape, generator=generator(1))
    gradient = torch.randn(shape, generator=generator(2)) * 1e-8
    dims = len(shape) - 2
    cells = torch.zeros(2, 1, *[3] * dims)
    for b in range(2):
        for cell in itertools.product(range(3), repeat=dims):
            box = tuple(slice(k * n // 3, (k + 1) * n // 3) for k, n in zip(cell, shape[2:], strict=True))
            cells[(b, 0, *cell)] = gradient[(b, slice(None), *box)].abs().mean()
        cells[b] /= cells[b].max()
    field = interpolate(cells, whole)
    saliency = torch.stack([slow.unit(f) for f in field])
    assert torch.allclose(saliency_fusion(whole, local, gradient), saliency * whole + (1 - saliency) * local, atol=1e-4)


def test_mixed_applies_one_intervention_per_sample():
    shape = (6, 1, 4, 5, 6)
    image, labels = scene(shape)
    params = Mixed().sample(Domain(shape, 3), generator(1))
    assert sum(part is not None for part in params.parts) >= 2
    assert sorted(row for part in params.parts if part for row in part.rows.tolist()) == list(range(6))
    bias, expected = interpolate(params.bias, image), torch.zeros_like(image)
    for intervention, part in zip((IPA(), Clusters(), SLAug()), params.parts, strict=True):
        if part is None:
            continue
        styled = intervention.apply(image[part.rows], labels[part.rows], part.params)
        for b, one in zip(part.rows.tolist(), styled, strict=True):
            values = slow.unit(one)
            for voxel in slow.voxels(image):
                value = values[(0, *voxel)] * math.exp(bias[(b, 0, *voxel)])
                expected[(b, 0, *voxel)] = value ** params.gamma[b, 0]
    assert torch.allclose(Mixed().apply(image, labels, params), expected, atol=1e-4)


def test_mixed_chooses_by_the_shares():
    params = Mixed().sample(Domain((2000, 1, 4, 4), 2), generator())
    assert [len(part.rows) / 2000 for part in params.parts] == pytest.approx([0.5, 0.3, 0.2], abs=0.04)


# ---- published distributions -----------------------------------------------------------------------------------------


@pytest.mark.integration
def test_gin_has_the_published_distribution():
    """Agreement with the image, mean, skewness and roughness, over many applications to one image."""
    size, count = 12, 600
    image = torch.randn(1, 1, size, size, generator=generator()).cumsum(-1) * 0.5
    # A batch shares its kernel sizes, which the published form samples for each image: batches of one image.
    draws, domain = generator(1), Domain((1, 1, size, size), 1)
    drawn = [GIN().apply(image, None, GIN().sample(domain, draws)) for _ in range(count)]
    ours = torch.cat(drawn).view(count, -1).numpy()
    rng = np.random.default_rng(0)
    flat = image[0, 0].double().numpy()
    published = np.stack([slow.gin_published(flat, rng) for _ in range(count)]).reshape(count, -1)
    for measure in (
        lambda v: [np.corrcoef(row, flat.ravel())[0, 1] for row in v],
        lambda v: v.mean(1),
        lambda v: (((v - v.mean(1, keepdims=True)) / v.std(1, keepdims=True)) ** 3).mean(1),
        lambda v: np.abs(np.diff(v.reshape(-1, size, size), axis=1)).mean((1, 2)) / v.std(1),
    ):
        assert ks_2samp(measure(ours), measure(published)).pvalue > 0.01


def blends(count, size=32):
    """Blend fields of IPA in a cube."""
    shape = (count, 1, size, size, size)
    params = IPA().sample(Domain(shape, 1), generator())
    return blend_field(params.points, torch.zeros(shape))


@pytest.mark.integration
def test_the_blend_of_ipa_has_the_published_distribution():
    """A blend that is near 0 almost everywhere would make one GIN style out of two."""
    ours = blends(64)
    assert ours.mean().item() == pytest.approx(0.456, abs=0.025)
    assert (ours < 0.25).float().mean().item() == pytest.approx(0.05, abs=0.015)
    rng = np.random.default_rng(0)
    published = np.stack([slow.blend_field_published(32, 5, rng) for _ in range(64)])
    means = ours.flatten(1).mean(1).numpy(), published.reshape(64, -1).mean(1)
    low = (ours < 0.25).flatten(1).float().mean(1).numpy(), (published < 0.25).reshape(64, -1).mean(1)
    assert ks_2samp(*means).pvalue > 0.01
    assert ks_2samp(*low).pvalue > 0.01


def test_control_points_of_ipa_have_unit_norm():
    params = IPA().sample(Domain((3, 1, 9, 9), 1), generator())
    assert torch.allclose(params.points.flatten(1).norm(dim=1), torch.ones(3))


@pytest.mark.integration
def test_slaug_has_the_published_distribution():
    """The shift of the foreground's mean and its new range, over many applications to one image with a small organ."""
    size, count = 20, 400
    labels = torch.zeros(1, 1, size, size, dtype=torch.long)
    labels[:, :, 6:13, 5:14] = 1
    image = torch.rand(labels.shape, generator=generator()) * 0.3 + labels * 0.25 + 0.1
    image[0, 0, 0, 0], image[0, 0, 0, 1] = 0, 1
    inside = (labels == 1).expand(count, 1, -1, -1)
    many = image.expand(count, 1, -1, -1)
    params = SLAug().sample(Domain(tuple(many.shape), 2), generator(1))
    ours = SLAug().apply(many, labels.expand_as(many), params)[inside].view(count, -1).numpy()
    rng = np.random.default_rng(0)
    x, y = image[0, 0].double().numpy(), labels[0, 0].numpy()
    published = np.stack([slow.slaug_published(x, y, rng)[y == 1] for _ in range(count)])
    before = image[labels == 1].mean().item()
    for measure in (lambda v: np.abs(v.mean(1) - before), lambda v: v.std(1), lambda v: np.ptp(v, axis=1)):
        assert ks_2samp(measure(ours), measure(published)).pvalue > 0.01


# ---- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gin", "randconv"])
def test_slices_along_a_coarse_axis_do_not_mix(name):
    intervention = INTERVENTIONS[name]()
    shape = (1, 1, 4, 9, 9)
    image, labels = scene(shape)
    other = image.clone()
    other[:, :, 2] = other[:, :, 2].flip(-1)  # the same energy
    for seed in range(6):
        params = intervention.sample(Domain(shape, 3, coarse=(0,)), generator(seed))
        ratio = intervention.apply(image, labels, params)[:, :, 0] / intervention.apply(other, labels, params)[:, :, 0]
        assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), atol=1e-3)


def test_statistics_are_matched():
    image, _ = scene(SHAPES[1])
    styled = match_statistics(image**3, image)
    axes = (2, 3, 4)
    assert torch.allclose(styled.mean(axes), image.mean(axes), atol=1e-5)
    assert torch.allclose(styled.std(axes), image.std(axes), atol=1e-5)
    assert torch.allclose(match_statistics(image, image), image, atol=1e-5)


def test_fields_reach_their_control_points_and_small_axes_have_fewer():
    points = sample_control_points((2, 3, 4, 9, 17), generator())
    assert points.shape == (2, 1, 4, 5, 5)
    field = interpolate(points, torch.zeros(2, 3, 4, 9, 17))
    assert torch.allclose(field[:, :, :, ::2, ::4], points, atol=1e-5)


def test_coarse_axes_by_nnunets_threshold():
    assert coarse_axes((5.0, 1.0, 1.5)) == (0,)
    assert coarse_axes((3.0, 1.0, 1.0)) == ()
    assert coarse_axes((1.0, 1.0)) == ()
    assert Domain((1, 1, 4, 4, 4), 2, (0,)).kernel(7) == (1, 7, 7)


def test_fusion_ignores_the_scale_of_the_gradient_and_survives_an_overflow():
    whole, local = torch.rand(2, 1, 6, 6, generator=generator()), torch.rand(2, 1, 6, 6, generator=generator(1))
    gradient = torch.randn(2, 1, 6, 6, generator=generator(2))
    plain = saliency_fusion(whole, local, gradient)
    assert torch.allclose(saliency_fusion(whole, local, gradient * 65536), plain, atol=1e-6)
    for bad in (math.inf, math.nan):
        broken = gradient.clone()
        broken[0, 0, 2, 3] = bad
        fused = saliency_fusion(whole, local, broken)
        assert torch.equal(fused[0], local[0])
        assert torch.equal(fused[1], plain[1])


# ---- real volumes ----------------------------------------------------------------------------------------------------


def real_volume(dataset: str, largest: int = 56):
    """The middle of the first training case, z-scored, with its labels."""
    sitk = pytest.importorskip("SimpleITK")
    images = sorted((DATA / dataset / "imagesTr").glob("[!.]*.nii.gz"))
    if not images:
        pytest.skip(f"{dataset} is not in shared/data beside the checkout")
    label = DATA / dataset / "labelsTr" / images[0].name.replace("_0000.nii.gz", ".nii.gz")
    pair = [torch.from_numpy(sitk.GetArrayFromImage(sitk.ReadImage(f)).astype(np.float32)) for f in (images[0], label)]
    box = tuple(slice(max(n - largest, 0) // 2, max(n - largest, 0) // 2 + largest) for n in pair[0].shape)
    image, labels = (x[box][None, None] for x in pair)
    return (image - image.mean()) / image.std(), labels.long()


def order_of_means(image, tissues):
    return torch.stack([image[tissues == k].mean() for k in tissues.unique()]).argsort().tolist()


def edges(image):
    return torch.stack(torch.gradient(image[0, 0])).norm(dim=0).flatten()


@pytest.mark.integration
@pytest.mark.parametrize("dataset", ["Dataset004_Hippocampus", "Dataset901_LA2018"])
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_real_volumes_change_style_and_keep_edges(dataset, name):
    """Tissues: thirds of the background by intensity, and each label. Median correlation of gradient magnitudes."""
    image, labels = real_volume(dataset)
    rest = image[labels == 0]
    thirds = rest.kthvalue(len(rest) // 3).values, rest.kthvalue(2 * len(rest) // 3).values
    tissues = torch.where(labels > 0, labels + 2, (image > thirds[0]).long() + (image > thirds[1]).long())
    intervention = INTERVENTIONS[name]()
    domain, draws = Domain(tuple(image.shape), int(labels.max()) + 1), generator(4)
    before, reordered, kept = order_of_means(image, tissues), 0, []
    # A blend of two styles is close to their mean, so that it changes the order less often than one style.
    count, least = (60, 6) if name == "gin_ipa" else (12, 4)
    for _ in range(count):
        styled = intervention.apply(image, labels, intervention.sample(domain, draws))
        reordered += order_of_means(styled, tissues) != before
        kept.append(float(torch.corrcoef(torch.stack((edges(image), edges(styled))))[0, 1]))
    if name != "randconv":  # meant to change texture, not contrast
        assert reordered >= least
    assert np.median(kept) > 0.2
