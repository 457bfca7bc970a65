"""Each intervention against its formula written as loops, and by what it does to real volumes."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_invariance.augmentation.interventions import INTERVENTIONS
from nnunet_invariance.augmentation.interventions.base import (
    Domain,
    coarse_axes,
    match_statistics,
)
from nnunet_invariance.augmentation.interventions.clusters import Clusters, apply_clusters, sample_clusters
from nnunet_invariance.augmentation.interventions.fields import interpolate, sample_points
from nnunet_invariance.augmentation.interventions.gin import apply_gin, sample_gin
from nnunet_invariance.augmentation.interventions.gmm import apply_gmm, sample_gmm
from nnunet_invariance.augmentation.interventions.ipa import apply_gin_ipa, sample_gin_ipa
from nnunet_invariance.augmentation.interventions.mixed import PARTS, apply_mixed, sample_mixed
from nnunet_invariance.augmentation.interventions.randconv import apply_randconv, sample_randconv
from nnunet_invariance.augmentation.interventions.slaug import (
    apply_global,
    apply_local,
    balance,
    curve_tables,
    sample_slaug,
)
from nnunet_invariance.augmentation.interventions.tissues import find_tissues

SHAPES = [(2, 2, 5, 6), (2, 1, 4, 5, 6)]
DATA = Path(__file__).parents[3] / "shared/data"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scene(shape, seed=0, classes=3):
    image = torch.randn(shape, generator=generator(seed)) * 2 + 1
    labels = torch.randint(classes, (shape[0], 1, *shape[2:]), generator=generator(seed + 1))
    return image, labels


def voxels(image):
    """All places of the spatial axes."""
    return itertools.product(*(range(n) for n in image.shape[2:]))


# ---- slow references -------------------------------------------------------------------------------------------------


def slow_convolution(x, weight, shift):
    """(C_in, *spatial) with (C_out, C_in, *kernel), zero outside, voxel by voxel."""
    out = np.zeros((len(weight), *x.shape[1:]))
    half = [k // 2 for k in weight.shape[2:]]
    for o in range(len(weight)):
        for place in itertools.product(*(range(n) for n in x.shape[1:])):
            total = shift[o]
            for offset in itertools.product(*(range(k) for k in weight.shape[2:])):
                at = tuple(p + k - h for p, k, h in zip(place, offset, half, strict=True))
                if all(0 <= a < n for a, n in zip(at, x.shape[1:], strict=True)):
                    for i in range(len(x)):
                        total += weight[(o, i, *offset)] * x[(i, *at)]
            out[(o, *place)] = total
    return out


def slow_gin(image, draw):
    results = []
    for b, sample in enumerate(image.double().numpy()):
        x = sample
        for layer, (weight, shift) in enumerate(zip(draw.weights, draw.shifts, strict=True)):
            wide = len(weight) // len(image)
            own = slice(b * wide, (b + 1) * wide)
            x = slow_convolution(x, weight[own].double().numpy(), shift[own].double().numpy())
            if layer < 3:
                x = np.where(x > 0, x, 0.01 * x)
        a = float(draw.alpha[b])
        m = a * x + (1 - a) * sample
        results.append(m * math.sqrt((sample**2).sum()) / (math.sqrt((m**2).sum()) + 1e-5))
    return torch.from_numpy(np.stack(results)).float()


def slow_unit(values):
    low, high = values.min(), values.max()
    return (values - low) / max(high - low, 1e-6)


def slow_kmeans(values, clusters):
    """Cluster of each value: Lloyd on values rounded to 256 levels, from the quantiles (k + 1/2) / clusters."""
    levels = sorted(round(float(v) * 255) for v in values)
    centres = [levels[max(math.ceil(len(levels) * (k + 0.5) / clusters) - 1, 0)] for k in range(clusters)]
    for _ in range(10):
        groups = [[] for _ in centres]
        for level in levels:
            groups[min(range(clusters), key=lambda k: abs(level - centres[k]))].append(level)
        centres = [sum(g) / len(g) if g else c for g, c in zip(groups, centres, strict=True)]
    return [min(range(clusters), key=lambda k: abs(round(float(v) * 255) - centres[k])) for v in values]


def slow_tissues(image, labels, classes):
    tissues = torch.zeros(image.shape, dtype=torch.long)
    for b, c in itertools.product(*map(range, image.shape[:2])):
        unit = slow_unit(image[b, c])
        for label in range(classes):
            inside = labels[b, 0] == label
            first, clusters = (0, 6) if label == 0 else (6 + 2 * (label - 1), 2)
            if inside.any():
                tissues[b, c][inside] = torch.tensor(slow_kmeans(unit[inside], clusters)) + first
    return tissues


def slow_curve(points, inverted, value):
    """The Bezier curve through (0, 0), p, q and (1, 1) at 256 parameters, sorted or reversed, then interpolated."""
    (px, py), (qx, qy) = points.tolist()
    xs, ys = [], []
    for i in range(256):
        t = i / 255
        xs.append(3 * px * t * (1 - t) ** 2 + 3 * qx * t**2 * (1 - t) + t**3)
        ys.append(3 * py * t * (1 - t) ** 2 + 3 * qy * t**2 * (1 - t) + t**3)
    return np.interp(value, sorted(xs), ys[::-1] if inverted else sorted(ys))


def slow_slaug(image, regions, curves):
    result = torch.zeros_like(image)
    for b, c in itertools.product(*map(range, image.shape[:2])):
        unit = slow_unit(image[b, c])
        for r in regions[b, 0].unique().tolist():
            inside = regions[b, 0] == r
            styled = torch.tensor(
                [slow_curve(curves.points[b, c, r], curves.inverted[b, c, r], v) for v in unit[inside]]
            )
            ordered = styled.sort().values
            low, high = (float(ordered[max(math.ceil(len(ordered) * q) - 1, 0)]) for q in (0.2, 0.8))
            shift = min(max(float(curves.shift[b, c, r]), -low), 1 - high)
            styled = (styled * curves.scale[b, c, r] + shift).clamp(0, 1)
            result[b, c][inside] = torch.where(unit[inside] <= 0.01, unit[inside], styled.float())
    return result


# ---- against the references ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_gin(shape):
    image, labels = scene(shape)
    seen = set()
    for seed in range(4):
        draw = sample_gin(Domain(shape, 3), generator(seed))
        seen |= {weight.shape[-1] for weight in draw.weights}
        assert torch.allclose(apply_gin(image, labels, draw), slow_gin(image, draw), atol=2e-4)
    assert seen == {1, 3}
    neutral = dataclasses.replace(draw, alpha=torch.zeros(2))
    assert torch.allclose(apply_gin(image, labels, neutral), image, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_gin_ipa(shape):
    image, labels = scene(shape)
    draw = sample_gin_ipa(Domain(shape, 3), generator(3))
    field = interpolate(draw.points, image)
    first, second = slow_gin(image, draw.first), slow_gin(image, draw.second)
    expected = torch.zeros_like(image)
    for b in range(shape[0]):
        values = field[b, 0].exp()
        for place in voxels(image):
            blend = (values[place] - values.min()) / (values.max() - values.min())
            for c in range(shape[1]):
                at = (b, c, *place)
                expected[at] = blend * first[at] + (1 - blend) * second[at]
    assert torch.allclose(apply_gin_ipa(image, labels, draw), expected, atol=5e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_randconv(shape):
    image, labels = scene(shape)
    sizes = set()
    for seed in range(12):
        draw = sample_randconv(Domain(shape, 3), generator(seed))
        sizes.add(draw.weight.shape[-1])
    channels = shape[1]
    slow = []
    for b in range(shape[0]):
        weight = draw.weight[b * channels : (b + 1) * channels].double().numpy()
        convolved = torch.from_numpy(slow_convolution(image[b].double().numpy(), weight, [0.0] * channels)).float()
        slow.append(draw.alpha[b] * convolved + (1 - draw.alpha[b]) * image[b])
    assert torch.allclose(apply_randconv(image, labels, draw), torch.stack(slow), atol=1e-4)
    assert sizes == {1, 3, 5, 7}


def test_randconv_weights_have_the_standard_deviation_of_one_over_root_fan_in():
    draws = [sample_randconv(Domain((64, 2, 8, 8, 8), 1), generator(seed)) for seed in range(12)]
    for draw in draws:
        fan_in = 2 * draw.weight.shape[-1] ** 3
        assert draw.weight.std() * math.sqrt(fan_in) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("shape", SHAPES)
def test_tissues(shape):
    image, labels = scene(shape)
    labels[1][labels[1] == 2] = 0  # a label that a sample does not have
    assert torch.equal(find_tissues(image, labels, 3), slow_tissues(image, labels, 3))


@pytest.mark.parametrize("shape", SHAPES)
def test_clusters(shape):
    image, labels = scene(shape)
    draw = sample_clusters(Domain(shape, 3, coarse=(0,)), generator())
    assert draw.kernel[0] == 1
    tissues = slow_tissues(image, labels, 3)
    factor, offset = torch.zeros_like(image), torch.zeros_like(image)
    for b, c in itertools.product(*map(range, shape[:2])):
        mean, std = image[b, c].mean(), image[b, c].std(correction=0)
        for k in tissues[b, c].unique().tolist():
            inside = tissues[b, c] == k
            scale, level = draw.scales[b, c, k], mean + std * draw.levels[b, c, k]
            factor[b, c][inside] = scale
            offset[b, c][inside] = level - scale * image[b, c][inside].mean()
    expected = torch.zeros_like(image)
    for b, c in itertools.product(*map(range, shape[:2])):
        for place in voxels(image):
            box = tuple(slice(max(p - k // 2, 0), p + k // 2 + 1) for p, k in zip(place, draw.kernel, strict=True))
            at = (b, c, *place)
            expected[at] = factor[(b, c, *box)].mean() * image[at] + offset[(b, c, *box)].mean()
    assert torch.allclose(apply_clusters(image, labels, draw), expected, atol=1e-4)


def test_clusters_keep_texture_and_move_levels():
    """Inside one tissue the image is the old one, times a factor and plus a level."""
    image = torch.randn(1, 1, 16, 16, generator=generator()) * 0.01
    labels = torch.ones(1, 1, 16, 16, dtype=torch.long)
    levels = torch.full((1, 1, 8), 1.5)
    draw = Clusters(2, levels, torch.full((1, 1, 8), -0.7), (3, 3))
    styled = apply_clusters(image, labels, draw)
    inner = find_tissues(image, labels, 2) == 6
    means = image[inner].mean()
    unblurred = image.mean() + image.std(correction=0) * 1.5 - 0.7 * (image - means)
    alone = inner & (torch.nn.functional.avg_pool2d(inner.float(), 3, 1, 1, count_include_pad=False) == 1)
    assert alone.any()
    assert torch.allclose(styled[alone], unblurred[alone], atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gmm(shape):
    image, labels = scene(shape)
    draw = sample_gmm(Domain(shape, 3), generator())
    noise = torch.randn(shape, generator=generator(draw.noise_seed))
    bias, tissues = interpolate(draw.bias, image), slow_tissues(image, labels, 3)
    painted = torch.zeros_like(image)
    for b, c in itertools.product(*map(range, shape[:2])):
        for place in voxels(image):
            at, k = (b, c, *place), tissues[(b, c, *place)]
            value = (draw.means[b, c, k] + draw.stds[b, c, k] * noise[at]) * math.exp(bias[(b, 0, *place)])
            painted[at] = min(max(float(value), 0), 300)
        painted[b, c] = slow_unit(painted[b, c]) ** draw.gamma[b, c]
    assert torch.allclose(apply_gmm(image, labels, draw), painted, atol=1e-4)
    assert ((draw.means >= 25) & (draw.means < 225)).all()
    assert ((draw.stds >= 5) & (draw.stds < 25)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_slaug(shape):
    image, labels = scene(shape)
    draw = sample_slaug(Domain(shape, 3), generator(1))
    tolerance = 1 / 255  # percentiles come out of 256 levels
    whole = apply_global(image, labels, draw)
    assert torch.allclose(whole, slow_slaug(image, torch.zeros_like(labels), draw.whole), atol=tolerance)
    local = apply_local(image, labels, draw)
    assert torch.allclose(local, slow_slaug(image, labels, draw.by_label), atol=tolerance)
    assert draw.by_label.inverted[:, :, 0].all()
    assert not draw.whole.inverted.any()


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
    saliency = torch.stack([slow_unit(f) for f in field])
    assert torch.allclose(balance(whole, local, gradient), saliency * whole + (1 - saliency) * local, atol=1e-4)


def test_mixed():
    image, labels = scene(SHAPES[1])
    chosen = []
    for seed in range(60):
        draw = sample_mixed(Domain(SHAPES[1], 3), generator(seed))
        chosen.append(draw.chosen)
    unit = torch.stack([slow_unit(x) for x in PARTS[draw.chosen][0].apply(image, labels, draw.draw)])
    bias = interpolate(draw.bias, image)
    expected = torch.zeros_like(image)
    for b in range(2):
        for place in voxels(image):
            value = unit[(b, 0, *place)] * math.exp(bias[(b, 0, *place)])
            expected[(b, 0, *place)] = value ** draw.gamma[b, 0]
    assert torch.allclose(apply_mixed(image, labels, draw), expected, atol=1e-4)
    assert np.bincount(chosen) / 60 == pytest.approx([0.5, 0.3, 0.2], abs=0.17)


# ---- what all of them keep to ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INTERVENTIONS)
@pytest.mark.parametrize("shape", [(2, 2, 16, 20), (2, 1, 6, 16, 12), (1, 3, 8, 8, 8)])
def test_shape_finite_no_gradient_repeatable_labels_untouched(name, shape):
    sample, apply = INTERVENTIONS[name]
    image, labels = scene(shape)
    image.requires_grad_()
    before, seen = (image.detach().clone(), labels.clone()), generator(9)
    domain = Domain(shape, 3, coarse=(0,))
    with torch.autocast("cpu", torch.bfloat16):
        first, second = (apply(image, labels, sample(domain, g)) for g in (seen, generator(9)))
    other = apply(image, labels, sample(domain, seen))
    assert first.shape == shape
    assert first.dtype == torch.float32
    assert first.isfinite().all()
    assert not first.requires_grad
    assert torch.equal(first, second)
    assert not torch.allclose(first, other)
    assert torch.equal(image, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_constant_images_and_missing_labels_stay_finite(name):
    sample, apply = INTERVENTIONS[name]
    image, labels = torch.full((2, 1, 5, 5, 5), 3.0), torch.zeros(2, 1, 5, 5, 5, dtype=torch.long)
    for seed in range(5):
        styled = apply(image, labels, sample(Domain(tuple(image.shape), 4), generator(seed)))
        assert match_statistics(styled, image).isfinite().all()


@pytest.mark.parametrize("name", ["gin", "randconv"])
def test_slices_along_a_coarse_axis_do_not_mix(name):
    sample, apply = INTERVENTIONS[name]
    shape = (1, 1, 4, 9, 9)
    image, labels = scene(shape)
    other = image.clone()
    other[:, :, 2] = other[:, :, 2].flip(-1)  # the same energy
    for seed in range(6):
        draw = sample(Domain(shape, 3, coarse=(0,)), generator(seed))
        ratio = apply(image, labels, draw)[:, :, 0] / apply(other, labels, draw)[:, :, 0]
        assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), atol=1e-3)


def test_samples_do_not_mix():
    shape = (2, 1, 6, 6, 6)
    image, labels = scene(shape)
    changed = image.clone()
    changed[1] *= -3
    for name, (sample, apply) in INTERVENTIONS.items():
        if name == "gmm":
            continue  # painted anew
        draw = sample(Domain(shape, 3), generator(2))
        assert torch.equal(apply(image, labels, draw)[0], apply(changed, labels, draw)[0]), name


def test_statistics_are_matched():
    image, _ = scene(SHAPES[1])
    styled = match_statistics(image**3, image)
    axes = (2, 3, 4)
    assert torch.allclose(styled.mean(axes), image.mean(axes), atol=1e-5)
    assert torch.allclose(styled.std(axes), image.std(axes), atol=1e-5)
    assert torch.allclose(match_statistics(image, image), image, atol=1e-5)


def test_fields_reach_their_control_points_and_small_axes_have_fewer():
    points = sample_points((2, 3, 4, 9, 17), generator())
    assert points.shape == (2, 1, 4, 5, 5)
    field = interpolate(points, torch.zeros(2, 3, 4, 9, 17))
    assert torch.allclose(field[:, :, :, ::2, ::4], points, atol=1e-5)


def test_coarse_axes_by_nnunets_threshold():
    assert coarse_axes((5.0, 1.0, 1.5)) == (0,)
    assert coarse_axes((3.0, 1.0, 1.0)) == ()
    assert coarse_axes((1.0, 1.0)) == ()
    assert Domain((1, 1, 4, 4, 4), 2, (0,)).kernel(7) == (1, 7, 7)


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


@pytest.mark.parametrize("dataset", ["Dataset004_Hippocampus", "Dataset901_LA2018"])
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_real_volumes_change_style_and_keep_edges(dataset, name):
    """Tissues: thirds of the background by intensity, and each label. Median correlation of gradient magnitudes."""
    image, labels = real_volume(dataset)
    rest = image[labels == 0]
    thirds = rest.kthvalue(len(rest) // 3).values, rest.kthvalue(2 * len(rest) // 3).values
    tissues = torch.where(labels > 0, labels + 2, (image > thirds[0]).long() + (image > thirds[1]).long())
    sample, apply = INTERVENTIONS[name]
    domain, draws = Domain(tuple(image.shape), int(labels.max()) + 1), generator(4)
    before, reordered, kept = order_of_means(image, tissues), 0, []
    for _ in range(12):
        styled = apply(image, labels, sample(domain, draws))
        reordered += order_of_means(styled, tissues) != before
        kept.append(float(torch.corrcoef(torch.stack((edges(image), edges(styled))))[0, 1]))
    if name != "randconv":  # meant to change texture, not contrast
        assert reordered >= 4
    assert np.median(kept) > 0.2
