"""The losses of PUIR: equality with slow loops of their equations, and their properties."""

import pytest
import torch
from torch import Tensor

from nnunet_invariance.augmentation.cube_group import apply_symmetry, invert_symmetry, sample_symmetries, symmetries
from nnunet_invariance.augmentation.cutout import fill_with_noise, sample_boxes
from nnunet_invariance.losses.decomposition import DecompositionLoss, foreground
from nnunet_invariance.losses.equivariance import FeatureEquivarianceLoss, OutputEquivarianceLoss
from nnunet_invariance.losses.individual_contrast import IndividualContrast
from nnunet_invariance.losses.modality_invariance import ModalityInvarianceLoss
from nnunet_invariance.losses.subset_distillation import SubsetDistillationLoss

PRESENT = torch.tensor([[True, True, False, True], [False, True, False, False], [True, False, True, False]])


def estimates(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 5, 2, 3, 2, generator=generator, dtype=dtype)


def layer_norm(cell: Tensor) -> Tensor:
    return (cell - cell.mean()) / (cell.var(unbiased=False) + 1e-5).sqrt()


def normal(x: Tensor) -> Tensor:
    """(F, z, y, x) normalised cell by cell."""
    return torch.stack([layer_norm(cell) for cell in x.flatten(1).T]).T.reshape(x.shape)


def slow_invariance(x: Tensor, present: Tensor, anchor: str, order: list[list[int]]) -> float:
    total = 0.0
    for b in range(len(x)):
        here = [i for i in order[b] if present[b, i]]
        rows = {i: normal(x[b, i]) for i in here}
        losses, running = [], None
        for i in here:
            if anchor == "others" and len(here) > 1:
                others = sum(rows[j] for j in here if j != i) / (len(here) - 1)
                losses.append((rows[i] - others).square().mean())
            elif anchor == "running":
                if running is not None:
                    losses.append((rows[i] - running).square().mean())
                running = rows[i] if running is None else (running + rows[i]) / 2
        total += float(sum(losses) / len(losses)) if losses else 0.0
    return total / len(x)


@pytest.mark.parametrize("anchor", ["others", "running"])
def test_invariance_equals_the_slow_loop(anchor):
    x, order = estimates(), [[2, 0, 3, 1], [3, 2, 1, 0], [1, 2, 3, 0]]
    loss = ModalityInvarianceLoss(anchor)(x, PRESENT, torch.tensor(order))
    assert loss.item() == pytest.approx(slow_invariance(x, PRESENT, anchor, order))


@pytest.mark.parametrize("anchor", ["others", "running"])
def test_invariance_ignores_scale_and_absent_modalities(anchor):
    loss, x = ModalityInvarianceLoss(anchor), estimates()
    equal = x[:, :1].expand(-1, 4, -1, -1, -1, -1)
    assert loss(equal, PRESENT).item() == pytest.approx(0, abs=1e-12)
    full = torch.ones_like(PRESENT)
    assert loss(1000 * x, full).item() == pytest.approx(
        loss(x, full).item(), rel=1e-4
    )  # a smaller scale does not lower the loss
    x.requires_grad_()
    loss(x, PRESENT).backward()
    assert not x.grad[~PRESENT].any()
    assert not x.grad[1].any()  # a single modality has no anchor
    assert loss(x, torch.zeros_like(PRESENT)).item() == 0


def test_the_anchor_has_no_gradient():
    x = estimates()[:1, :2].requires_grad_()
    ModalityInvarianceLoss("running")(x, torch.ones(1, 2, dtype=torch.bool)).backward()
    assert not x.grad[0, 0].any()
    assert x.grad[0, 1].any()


def test_decomposition_equals_the_slow_loop():
    generator = torch.Generator().manual_seed(1)
    outputs, image = torch.randn(3, 2, 4, 2, 3, 2, generator=generator), torch.randn(3, 4, 2, 3, 2, generator=generator)
    image[:, :, 0] = -3.0  # background
    inside = torch.rand(3, 1, 2, 3, 2, generator=generator) < 0.8
    sources = torch.tensor([[True, True], [True, False], [False, False]])
    total = 0.0
    for b in range(3):
        targets = [j for j in range(4) if PRESENT[b, j]]
        front = torch.zeros(2, 3, 2, dtype=torch.bool)
        for j in targets:
            values = image[b, j][inside[b, 0]]
            front |= image[b, j] > values.min() + 1e-3 * (values.max() - values.min())
        front = front & inside[b, 0]
        values = []
        for r in range(2):
            errors = torch.stack([(outputs[b, r, j] - image[b, j]).square() for j in targets])
            if sources[b, r]:
                values.append(10 * errors[:, front].mean() + errors[:, inside[b, 0]].mean())
        total += float(sum(values) / len(values)) if values else 0.0
    loss = DecompositionLoss()(outputs, image, PRESENT, inside, sources)
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)


def test_foreground_of_a_constant_image_is_the_whole_valid_mask():
    flat = torch.zeros(1, 2, 3, 3, 3)
    inside, both = torch.ones(1, 1, 3, 3, 3, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)
    inside[..., 0] = False
    assert torch.equal(foreground(flat, both, inside), inside)
    flat[0, 1, 1, 1, 1] = 5
    assert foreground(flat, both, inside).sum() == 1
    flat[..., 0] = -100  # padding
    assert foreground(flat, both, inside).sum() == 1
    assert torch.equal(foreground(flat, torch.tensor([[True, False]]), inside), inside)


def test_equivariance_losses():
    a, b = torch.randn(2, 3, 2, 2, 2), torch.randn(2, 3, 2, 2, 2).requires_grad_()
    p, q = (x.exp() / x.exp().sum(1, keepdim=True) for x in (a, b))
    assert OutputEquivarianceLoss()(a, b).item() == pytest.approx((p - q).square().sum(1).mean().item(), rel=1e-5)
    assert not OutputEquivarianceLoss()(a, b).requires_grad  # the reference gets no gradient
    assert OutputEquivarianceLoss()(a, a).item() == 0
    expected = (a.sigmoid() - b.sigmoid()).square().mean().item()
    assert OutputEquivarianceLoss(multilabel=True)(a, b).item() == pytest.approx(expected)
    x, y = estimates(), estimates().flip(0)
    means = []
    for s in range(3):
        one = [(normal(x[s, i]) - normal(y[s, i])).square().mean() for i in range(4) if PRESENT[s, i]]
        means.append(sum(one) / len(one))
    assert FeatureEquivarianceLoss()(x, y, PRESENT).item() == pytest.approx(float(sum(means) / 3))
    assert FeatureEquivarianceLoss()(x, 3 * x, PRESENT).item() == pytest.approx(0, abs=1e-6)


def test_distillation_from_all_modalities_is_the_divergence_of_the_samples_that_lack_one():
    full, subset = torch.randn(3, 4, 2, 2, 2).requires_grad_(), torch.randn(3, 4, 2, 2, 2)
    lacking = torch.tensor([True, False, True])
    classes = [torch.distributions.Categorical(logits=x.detach().movedim(1, -1)) for x in (full, subset)]
    expected = torch.distributions.kl_divergence(*classes).flatten(1).mean(1)[lacking].sum() / 3
    loss = SubsetDistillationLoss()(subset, full, lacking)
    torch.testing.assert_close(loss, expected)
    assert not loss.requires_grad  # the target gets no gradient
    assert SubsetDistillationLoss()(full, full, lacking).item() == 0
    regions = [torch.distributions.Bernoulli(logits=x.detach()) for x in (full, subset)]
    expected = torch.distributions.kl_divergence(*regions).flatten(1).mean(1)[lacking].sum() / 3
    torch.testing.assert_close(SubsetDistillationLoss(multilabel=True)(subset, full, lacking), expected)


def test_contrast_equals_the_slow_loop():
    generator = torch.Generator().manual_seed(2)
    anchors, keys = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (3, 7))
    own = torch.tensor([[0, 0], [0, 1], [5, 2]])
    ids = torch.tensor([[0, 0], [0, 0], [0, 1], [5, 2], [6, 3], [-1, -1], [7, 9]])
    total, number = 0.0, 0
    for n in range(3):
        s = [float((anchors[n] / anchors[n].norm()) @ (k / k.norm()) / 0.1) for k in keys]
        positive = [m for m in range(7) if ids[m].tolist() == own[n].tolist()]
        negative = [m for m in range(7) if ids[m, 0] >= 0 and ids[m, 0] != own[n, 0]]
        others = sum(torch.tensor(s[m]).exp().item() for m in negative)
        terms = [
            -torch.tensor(e / (e + others)).log().item() for e in (torch.tensor(s[m]).exp().item() for m in positive)
        ]
        total, number = total + sum(terms) / len(terms), number + 1
    assert IndividualContrast()(anchors, own, keys, ids).item() == pytest.approx(total / number, rel=1e-4)


def test_contrast_without_negatives_is_zero_with_a_finite_gradient():
    anchors = torch.randn(2, 4, requires_grad=True)
    ids = torch.tensor([[0, 0], [0, 0]])
    loss = IndividualContrast()(anchors, ids, torch.randn(2, 4), ids)
    loss.backward()
    assert loss.item() == 0
    assert not anchors.grad.any()


def test_gradients_equal_finite_differences():
    x = estimates()[:, :3, :2, :1, :1, :1].clone().requires_grad_()
    y = estimates().flip(0)[:, :3, :2, :1, :1, :1].clone()
    present = PRESENT[:, :3]
    assert torch.autograd.gradcheck(lambda e: FeatureEquivarianceLoss()(e, y, present), x)
    ids = torch.tensor([[0, 0], [1, 1], [2, 2]])
    rows = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: IndividualContrast()(a, ids, keys, ids), rows)


def test_a_cube_has_48_symmetries_and_each_has_an_exact_inverse():
    table = symmetries([(4, 4, 4), (2, 2, 2)])
    assert table.shape == (48, 6)
    x = torch.randn(4, 4, 4)
    turned = apply_symmetry(x.expand(48, 1, 4, 4, 4), table)
    assert len({tuple(t.flatten().tolist()) for t in turned}) == 48
    assert all(sorted(t.flatten().tolist()) == sorted(x.flatten().tolist()) for t in turned)
    back = invert_symmetry(turned, table)
    assert torch.equal(back, x.expand(48, 1, 4, 4, 4))
    # a group: any two after one another are one of them
    known = {tuple(t.flatten().tolist()) for t in turned}
    twice = apply_symmetry(turned.repeat(48, 1, 1, 1, 1), table.repeat_interleave(48, 0))
    assert {tuple(t.flatten().tolist()) for t in twice} == known


def test_symmetries_commute_with_pooling():
    table = symmetries([(4, 4, 4)])
    image = torch.randn(48, 2, 4, 4, 4)
    pool = torch.nn.AvgPool3d(2)
    torch.testing.assert_close(pool(apply_symmetry(image, table)), apply_symmetry(pool(image), table))


@pytest.mark.parametrize(
    ("sizes", "reflections", "count"),
    [([(8, 4, 4)], True, 16), ([(4, 4, 4), (1, 2, 2)], False, 8), ([(4, 8, 4)], False, 8), ([(2, 4, 8)], True, 8)],
)  # fmt: skip
def test_symmetries_preserve_the_shape(sizes, reflections, count):
    table = symmetries(sizes, reflections)
    assert len(table) == count
    assert not table[0].any()
    elements = sample_symmetries(table, 20, torch.Generator().manual_seed(0))
    for size in sizes:
        x = torch.randn(20, 3, *size)
        assert torch.equal(invert_symmetry(apply_symmetry(x, elements), elements), x)


def test_equivariant_estimates_have_zero_invariance_loss():
    """A 1x1x1 convolution is equivariant, so the loss is 0 after the inverse symmetries."""
    table, image = symmetries([(4, 4, 4)]), torch.randn(2, 1, 4, 4, 4).expand(2, 3, 4, 4, 4)
    elements = sample_symmetries(table, 6, torch.Generator().manual_seed(0))
    encoder = torch.nn.Conv3d(1, 5, 1)
    maps = invert_symmetry(encoder(apply_symmetry(image.reshape(6, 1, 4, 4, 4), elements)), elements).unflatten(
        0, (2, 3)
    )
    present = torch.ones(2, 3, dtype=torch.bool)
    assert ModalityInvarianceLoss()(maps, present).item() == pytest.approx(0, abs=1e-9)
    not_undone = encoder(apply_symmetry(image.reshape(6, 1, 4, 4, 4), elements)).unflatten(0, (2, 3))
    assert ModalityInvarianceLoss()(not_undone, present).item() > 0.01


def test_cutout_masks_boxes_up_to_the_maximum_share():
    generator = torch.Generator().manual_seed(0)
    hidden = sample_boxes((40, 1, 20, 20, 20), 0.3, generator)
    share = hidden.flatten(1).float().mean(1)
    assert share.max() <= 0.3 + 0.25**3
    assert 0.08 < share.mean() < 0.16
    image = torch.randn(40, 1, 20, 20, 20)
    filled = fill_with_noise(image, hidden, generator)
    assert torch.equal(filled[~hidden], image[~hidden])
    assert not torch.isclose(filled[hidden], image[hidden]).all()
    assert not sample_boxes((4, 1, 20, 20, 20), 0.0, generator).any()
