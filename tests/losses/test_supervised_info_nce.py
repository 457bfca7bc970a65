"""The core of InfoNCE and its supervised form: equality with slow loops of the equations, and their properties."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from nnunet_invariance.errors import OptionError, ShapeError
from nnunet_invariance.losses.info_nce import PatchInfoNCE, SupervisedInfoNCE
from nnunet_invariance.losses.tiled_info_nce import info_nce
from tests.helpers.info_nce_forms import PATCH, SUPERVISED, AllForms, batch, two_views
from tests.helpers.two_ranks import on_two_ranks

EXPONENT = {"none": 0.0, "inverse_sqrt": 0.5, "inverse": 1.0}
WITHIN_OR_ACROSS = list(itertools.product(("within", "across"), repeat=2))
WEIGHTS = list(itertools.product(EXPONENT, repeat=2))


def slow_loop(anchors, meets, positive, name, temperature, anchor_weight="none", denominator_weight="none"):
    """The equation, one pair at a time, in numbers. ``name(i)`` is the class of positives of a row."""
    unit = [a / a.norm() for a in anchors]
    total = weights = 0.0
    for i in range(len(unit)):
        positives = [j for j in range(len(unit)) if j != i and positive(i, j)]
        if not positives:
            continue
        met = [j for j in range(len(unit)) if j != i and (meets(i, j) or positive(i, j))]
        size = {j: sum(name(k) == name(j) for k in met) for j in met}
        partition = sum(
            math.exp(float(unit[i] @ unit[j]) / temperature) / size[j] ** EXPONENT[denominator_weight] for j in met
        )
        pull = sum(float(unit[i] @ unit[j]) / temperature for j in positives) / len(positives)
        weight = 1 / sum(name(k) == name(i) for k in range(len(unit))) ** EXPONENT[anchor_weight]
        total += weight * (math.log(partition) - pull)
        weights += weight
    return total / weights


@pytest.mark.parametrize(("positives", "negatives"), WITHIN_OR_ACROSS)
@pytest.mark.parametrize(("anchor_weight", "denominator_weight"), WEIGHTS)
def test_equals_the_slow_loop(positives, negatives, anchor_weight, denominator_weight):
    z, labels = batch()
    place, label = torch.arange(3).repeat_interleave(6).tolist(), labels.flatten().tolist()

    def name(i):
        return label[i] if positives == "across" else (place[i], label[i])

    expected = slow_loop(
        z.flatten(0, 1),
        lambda i, j: negatives == "across" or place[i] == place[j],
        lambda i, j: name(i) == name(j),
        name,
        0.4,
        anchor_weight,
        denominator_weight,
    )
    loss = SupervisedInfoNCE(0.4, positives, negatives, anchor_weight, denominator_weight)
    assert loss(z, labels).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("negatives", ["all_positions", "within_image", "same_position"])
@pytest.mark.parametrize("label_mask", ["none", "exclude_same_class", "supcon"])
def test_patch_forms_equal_the_slow_loop(negatives, label_mask):
    z, _ = batch(maps=6, rows=4)
    labels = torch.tensor([[0, 1, 1, 2], [1, 1, 0, 0], [0, 1, 2, 0]])
    valid = torch.tensor([[True, True, True, True], [True, True, False, True], [True] * 4])
    rows = [(v, b, n) for v, b, n in itertools.product(range(2), range(3), range(4)) if valid[b, n]]

    def together(i, j):
        (_, b, n), (_, c, m) = rows[i], rows[j]
        return {"all_positions": True, "within_image": b == c, "same_position": n == m}[negatives]

    def same(i, j):
        return labels[rows[i][1:]] == labels[rows[j][1:]]

    def positive(i, j):
        return together(i, j) and same(i, j) if label_mask == "supcon" else rows[i][1:] == rows[j][1:]

    def meets(i, j):
        return together(i, j) and not (label_mask == "exclude_same_class" and same(i, j))

    anchors = [z[3 * v + b, n] for v, b, n in rows]
    expected = slow_loop(anchors, meets, positive, lambda i: i, 0.2)
    loss = PatchInfoNCE(0.2, negatives, label_mask)(z[:3], z[3:], valid, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_same_position_is_the_cross_entropy_over_the_batch_at_each_position():
    z, _ = batch(maps=8, rows=5)
    a, b = F.normalize(z[:4], dim=2), F.normalize(z[4:], dim=2)
    losses = []
    for n in range(5):
        pair = torch.cat((a[:, n], b[:, n]))
        logits = (pair @ pair.T / 0.2).fill_diagonal_(-torch.inf)
        losses.append(F.cross_entropy(logits, (torch.arange(8) + 4) % 8))
    assert torch.allclose(PatchInfoNCE(0.2, "same_position")(z[:4], z[4:]), torch.stack(losses).mean(), rtol=1e-12)


def dense(z, positive, group, excluded, temperature, anchor_weight, denominator_weight):
    """The equation with all logits at once, for autograd."""
    z = F.normalize(z, dim=1)
    self_pair = torch.eye(len(z), dtype=torch.bool)
    same = positive[:, None] == positive
    meet = (group[:, None] == group) & ~(excluded[:, None] == excluded) | same
    class_of = F.one_hot(positive).to(z.dtype)
    met = (meet & ~self_pair).to(z.dtype)
    sizes = (met @ class_of) @ class_of.T
    s = z @ z.T / temperature
    weighted = s - EXPONENT[denominator_weight] * sizes.clamp(min=1).log()
    partition = weighted.masked_fill(met == 0, -torch.inf).logsumexp(1)
    positives = (same & ~self_pair).to(z.dtype)
    count = positives.sum(1)
    keep = count > 0
    weight = class_of.sum(0)[positive][keep] ** -EXPONENT[anchor_weight]
    each = (partition - (s * positives).sum(1) / count.clamp(min=1))[keep]
    return (weight * each).sum() / weight.sum()


TILED = [
    *itertools.product(("supcon", "groups", "beyond_groups"), ("none", "inverse"), ("none", "inverse_sqrt", "inverse")),
    ("excluded", "none", "none"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("temperature", [0.01, 0.33])
@pytest.mark.parametrize(("form", "anchor_weight", "denominator_weight"), TILED)
def test_loss_and_gradient_of_tiles_equal_those_of_the_dense_form(
    dtype, tolerance, temperature, form, anchor_weight, denominator_weight
):
    generator = torch.Generator().manual_seed(3)
    count = 203
    z = torch.randn(count, 24, generator=generator, dtype=dtype, requires_grad=True)
    label, place = (torch.randint(n, (count,), generator=generator) for n in (9, 4))
    alone, everyone = torch.arange(count), torch.zeros(count, dtype=torch.long)
    positive, group, excluded = {
        "supcon": (label, everyone, alone),
        "groups": (9 * place + label, place, alone),
        "beyond_groups": (label, place, alone),
        "excluded": (alone // 2, everyone, label),
    }[form]
    _, positive = positive.unique(return_inverse=True)
    reference = dense(z, positive, group, excluded, temperature, anchor_weight, denominator_weight)
    (expected,) = torch.autograd.grad(reference, z)
    weights = {"anchor_class_weight": anchor_weight, "denominator_class_weight": denominator_weight}
    keys = {"group": group[None], "excluded": excluded[None]}
    for tile in (1, 1000, 2**22):
        loss = info_nce(z[None], positive[None], temperature=temperature, **keys, **weights, tile=tile)
        (gradient,) = torch.autograd.grad(loss, z)
        assert abs(loss - reference) <= tolerance * abs(reference)
        assert (gradient - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize(("positives", "negatives"), WITHIN_OR_ACROSS)
def test_gradient_equals_finite_differences(positives, negatives):
    z, labels = batch(maps=2, rows=5, features=3)
    loss = SupervisedInfoNCE(0.33, positives, negatives, "inverse_sqrt", "inverse")
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), (z.requires_grad_(),))


@pytest.mark.parametrize("options", [{}, {"label_mask": "exclude_same_class"}, {"negatives": "same_position"}])
def test_patch_gradient_equals_finite_differences(options):
    z, labels = batch(maps=4, rows=3, features=3)
    loss = PatchInfoNCE(0.2, **options)
    first, second = z[:2].clone().requires_grad_(), z[2:].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, None, labels[:2]), (first, second))


def test_never_holds_a_matrix_of_all_pairs():
    count, tile = 600, 1800
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple | list) else (result,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return result

    z = torch.randn(count, 4, requires_grad=True)
    weights = {"anchor_class_weight": "inverse", "denominator_class_weight": "inverse"}
    with Watch():
        info_nce(z[None], torch.randint(7, (1, count)), temperature=0.3, **weights, tile=tile).backward()
    assert largest <= 7 * count  # rows and class sums, never pairs


@pytest.mark.parametrize("tile", [1, 50, 2**22])
def test_blocks_equal_the_dense_form_with_groups(tile):
    """Blocks in one call, in tiles of a part of a block, one block or several, equal the dense form with groups."""
    z, classes = batch(maps=4, rows=7, features=5)
    valid = torch.rand(4, 7, generator=torch.Generator().manual_seed(2)) < 0.8
    kept, block = valid.flatten(), torch.arange(4).repeat_interleave(7)
    z.requires_grad_()
    weights = {"anchor_class_weight": "inverse_sqrt", "denominator_class_weight": "inverse"}
    loss = info_nce(z, classes, valid, temperature=0.3, **weights, tile=tile)
    _, positive = (10 * block + classes.flatten())[kept].unique(return_inverse=True)
    rows, alone = z.flatten(0, 1)[kept], torch.arange(int(kept.sum()))
    reference = dense(rows, positive, block[kept], alone, 0.3, "inverse_sqrt", "inverse")
    assert torch.allclose(loss, reference, rtol=1e-10)
    for gradient in zip(*(torch.autograd.grad(x, z) for x in (loss, reference)), strict=True):
        assert torch.allclose(*gradient, rtol=1e-9, atol=1e-12)


class HostWaits(torch.utils._python_dispatch.TorchDispatchMode):
    """Lists the operators that make the host wait for the device: their result or its shape depends on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "equal.default", "repeat_interleave.Tensor")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        boolean_index = name.startswith("aten.index") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for arg in args if isinstance(arg, list) for x in arg
        )
        if boolean_index or any(wait in name for wait in self.WAITS):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_host_waits_are_recognised():
    with HostWaits() as waits:
        torch.arange(3)[torch.tensor([True, False, True])]
        torch.arange(3).sum().item()
    assert len(waits.found) >= 2


@pytest.mark.parametrize("form", range(len(PATCH) + len(SUPERVISED)))
def test_one_process_never_makes_the_host_wait(form):
    first, second, labels, valid = two_views()
    loss = (*PATCH, *SUPERVISED)[form]
    inputs = (first, second, valid, labels) if form < len(PATCH) else (first, labels, valid)
    inputs[0].requires_grad_()
    with HostWaits() as waits:
        loss(*inputs).backward()
    assert waits.found == []


def test_maps_within_are_the_mean_of_each_map_alone():
    z, labels = batch(maps=3, rows=8, labels=2)
    loss = SupervisedInfoNCE()
    assert torch.allclose(
        loss(z, labels), torch.stack([loss(z[i : i + 1], labels[i : i + 1]) for i in range(3)]).mean()
    )


def test_equal_rows_are_a_uniform_guess():
    z = torch.ones(2, 16, 4, dtype=torch.float64)
    _, labels = batch(maps=2, rows=16, labels=2)
    assert SupervisedInfoNCE()(z, labels).item() == pytest.approx(math.log(15))
    assert SupervisedInfoNCE(negatives="across")(z, labels).item() == pytest.approx(math.log(31))
    balanced = SupervisedInfoNCE(anchor_class_weight="inverse", denominator_class_weight="inverse")(z, labels)
    assert balanced.item() == pytest.approx(math.log(2))  # each of two classes has mass 1


def test_the_denominator_weight_reduces_the_influence_of_class_sizes():
    z, labels = batch(maps=1, rows=40, labels=2)
    grown, more = torch.cat((z, z[:, labels[0] == 1]), 1), torch.cat((labels, labels[:, labels[0] == 1]), 1)
    change = {}
    for weight in EXPONENT:
        loss = SupervisedInfoNCE(1.0, denominator_class_weight=weight, anchor_class_weight="inverse")
        change[weight] = abs(loss(grown, more) - loss(z, labels)).item()
    assert change["inverse"] < change["inverse_sqrt"] < change["none"]


def test_only_the_equality_of_labels_matters():
    z, labels = batch()
    loss = SupervisedInfoNCE(positives="across", denominator_class_weight="inverse")
    assert torch.allclose(loss(z, labels), loss(z, -1000 * labels + 7))
    assert torch.allclose(loss(z, labels), loss(z, labels.float()))
    # a map's own names, where equal labels of two maps mean different things
    within = SupervisedInfoNCE(negatives="across")
    assert torch.allclose(within(z, labels), within(z, labels + 10 * torch.arange(3)[:, None]))


def test_a_row_without_a_positive_is_a_negative_but_no_anchor():
    z, labels = batch(maps=1, rows=5)
    labels = torch.tensor([[0, 0, 1, 1, 2]])
    loss = SupervisedInfoNCE()
    unit = F.normalize(z[0], dim=1) @ F.normalize(z[0], dim=1).T / 0.33
    met = unit.clone().fill_diagonal_(-torch.inf).logsumexp(1)
    expected = sum(met[i] - unit[i, j] for i, j in ((0, 1), (1, 0), (2, 3), (3, 2))) / 4
    assert torch.allclose(loss(z, labels), expected)
    z.requires_grad_()
    nobody = loss(z, torch.arange(5)[None])
    nobody.backward()
    assert nobody.item() == 0
    assert (z.grad == 0).all()


@pytest.mark.parametrize("rubbish", [math.inf, math.nan])
def test_masked_rows_have_no_influence(rubbish):
    z, labels = batch(maps=2)
    valid = torch.rand(2, 6, generator=torch.Generator().manual_seed(5)) < 0.7
    other = z.masked_fill(~valid[..., None], rubbish).requires_grad_()
    expected = SupervisedInfoNCE(denominator_class_weight="inverse_sqrt")(z, labels, valid)
    loss = SupervisedInfoNCE(denominator_class_weight="inverse_sqrt")(other, labels, valid)
    loss.backward()
    assert torch.equal(loss, expected)
    assert (other.grad[~valid] == 0).all()
    assert other.grad.isfinite().all()


def test_forward_and_backward_compute_in_float32_under_autocast():
    z, labels = batch(dtype=torch.float32)
    gradients = []
    for enabled in (False, True):
        rows = z.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = SupervisedInfoNCE()(rows, labels)
            loss.backward()
        assert loss.dtype == torch.float32
        gradients.append(rows.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SupervisedInfoNCE(0.0), "'temperature' is 0.0; expected a number in \\(0, inf\\)"),
        (lambda: PatchInfoNCE(math.nan), "'temperature' is nan"),
        (lambda: SupervisedInfoNCE(positives="all"), "'positives' is 'all'; expected one of 'within', 'across'"),
        (
            lambda: SupervisedInfoNCE(anchor_class_weight="log"),
            "'anchor_class_weight' is 'log'; expected one of 'none', 'inverse_sqrt', 'inverse'",
        ),
        (lambda: PatchInfoNCE(negatives="queue"), "'negatives' is 'queue'; expected one of 'all_positions'"),
        (lambda: PatchInfoNCE(label_mask="sup"), "'label_mask' is 'sup'; expected one of 'none'"),
        (lambda: PatchInfoNCE(label_mask="supcon")(*torch.ones(2, 1, 2, 3)), "there are no labels; expected labels"),
    ],
)
def test_wrong_options_are_named(make, text):
    with pytest.raises(OptionError, match=text):
        make()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda z: SupervisedInfoNCE()(z, torch.zeros(2, 4)), r"'labels' has shape \(2, 4\); expected \(2, 3\)"),
        (lambda z: SupervisedInfoNCE()(z[0], torch.zeros(3)), r"shape \(3, 5\); expected \(B, N, D\)"),
        (lambda z: PatchInfoNCE()(z, z[:1]), r"'second' has shape \(1, 3, 5\); expected \(2, 3, 5\)"),
        (lambda z: PatchInfoNCE()(z, z, torch.ones(6)), r"'valid_mask' has shape \(6,\); expected \(2, 3\)"),
    ],
)
def test_wrong_shapes_are_named(call, text):
    with pytest.raises(ShapeError, match=text):
        call(torch.ones(2, 3, 5))


def all_forms_on_one_rank(rank):
    """Losses of every form, after the backward pass, and the gradients; the ranks have unequal numbers of samples."""
    mine = slice(0, 2) if rank == 0 else slice(2, 3)
    model = AllForms()
    parallel = DistributedDataParallel(model)  # it has to live until the backward pass
    losses = parallel(*(x[mine] for x in two_views()))
    losses.sum().backward()
    return {"losses": losses.detach(), "gradients": [p.grad for p in model.parameters()]}


def test_two_ranks_equal_one_rank_on_the_joined_batch():
    two, other = on_two_ranks(all_forms_on_one_rank)
    assert torch.equal(two["losses"], other["losses"])
    model = AllForms()
    losses = model(*two_views())
    losses.sum().backward()
    assert torch.allclose(two["losses"], losses, rtol=1e-12)
    for gradient, parameter in zip(two["gradients"], model.parameters(), strict=True):
        assert parameter.grad.abs().max() > 0
        assert torch.allclose(gradient, parameter.grad, rtol=1e-9, atol=1e-14)
