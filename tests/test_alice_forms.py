"""Alice's forms: masks, sparse encoding, CASA, targets, guards and presets, each against its law or a slow loop."""

import copy
import dataclasses
import math

import pytest
import torch
from distributed_alice import build, views
from test_networks import architecture
from torch import nn

from nnunet_invariance.augmentation.masking import sample_block_mask, sample_tube_mask
from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import OptionError
from nnunet_invariance.losses.masked_reconstruction import MaskedReconstructionLoss
from nnunet_invariance.losses.self_distillation import SelfDistillationLoss
from nnunet_invariance.losses.sinkhorn import sinkhorn_knopp
from nnunet_invariance.networks.casa import CrossAttentionAlignment
from nnunet_invariance.networks.skip_decoder import SkipDecoder
from nnunet_invariance.networks.sparse import SparseEncoding, masked_instance_norm, visibility
from nnunet_invariance.pretraining.alice import Alice, AliceOptions
from nnunet_invariance.pretraining.loop import LoopOptions
from nnunet_invariance.pretraining.mae import MAEOptions
from nnunet_invariance.pretraining.method import Setup
from nnunet_invariance.pretraining.run import parse_settings
from nnunet_invariance.pretraining.sam import SAMOptions

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_the_tube_mask_hides_whole_columns_twelve_of_sixteen():
    cells = torch.ones(3, 1, 4, 4, 4, dtype=torch.bool)
    hidden = sample_tube_mask(cells, 0.75, torch.Generator().manual_seed(0))
    assert (hidden.all(2) == hidden.any(2)).all()
    assert hidden[:, 0, 0].flatten(1).sum(1).tolist() == [12] * 3
    assert not torch.equal(hidden[0], hidden[1])
    cells[:, :, 2] = False  # padding is not hidden
    assert not (sample_tube_mask(cells, 0.75, torch.Generator()) & ~cells).any()


def test_a_tube_runs_along_the_axis_that_is_named():
    cells = torch.ones(1, 1, 4, 4, 4, dtype=torch.bool)
    for axis in range(3):
        hidden = sample_tube_mask(cells, 0.75, torch.Generator().manual_seed(0), axis)
        assert [(hidden.all(2 + a) == hidden.any(2 + a)).all().item() for a in range(3)].index(True) == axis


@pytest.mark.parametrize(("axes", "along"), [((2, 1, 0), 0), ((0, 2, 1), 1)])
def test_alice_hides_tubes_along_the_z_of_the_encoder(axes, along):
    alice = build(mask_mode="tube")
    alice.network.encoder.axes = axes
    hidden = alice._mask(torch.ones(2, 1, 4, 4, 4, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert (hidden.all(2 + along) == hidden.any(2 + along)).all()
    assert all((hidden.all(2 + a) != hidden.any(2 + a)).any() for a in range(3) if a != along)


def test_something_stays_visible_however_small_the_grid():
    one = torch.zeros(2, 1, 3, 2, 2, dtype=torch.bool)
    one[0, :, 1, 1, 1] = True  # one cell
    one[1, :, :, 0, 0] = True  # one column of three
    assert sample_block_mask(one, 0.75, torch.Generator()).flatten(1).sum(1).tolist() == [0, 2]
    assert not sample_tube_mask(one, 0.75, torch.Generator()).any()


@pytest.mark.parametrize("mask_mode", ["block3d", "tube"])
def test_a_sparse_student_of_small_bodies_measures_finite_numbers(mask_mode):
    alice = build(encoding="sparse", mask_mode=mask_mode)
    valid = torch.zeros(4, 1, 16, 16, 16, dtype=torch.bool)
    valid[..., :3, :3, :3] = True  # within one cell
    batch = {"image": random(4, 1, 16, 16, 16, dtype=torch.float32) * valid, "valid": valid, "score": torch.ones(2)}
    output = alice(alice.make_views(batch, torch.Generator().manual_seed(0)), 0.5)
    assert all(value.isfinite() for value in (*output.losses.values(), *output.diagnostics.values()))
    sum(output.losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in alice.parameters())


def test_the_block_mask_hides_its_share_of_single_cells():
    cells = torch.ones(2, 1, 4, 4, 4, dtype=torch.bool)
    hidden = sample_block_mask(cells, 0.75, torch.Generator().manual_seed(0))
    assert hidden.flatten(1).sum(1).tolist() == [48, 48]
    assert (hidden.all(2) != hidden.any(2)).any()


# ---- losses and targets ----------------------------------------------------------------------------------------------


def slow_sinkhorn(rows, iterations=3):
    q = [[math.exp(x) for x in row] for row in rows]
    for _ in range(iterations):
        totals = [sum(row[k] for row in q) for k in range(len(q[0]))]
        q = [[x / t for x, t in zip(row, totals, strict=True)] for row in q]
        q = [[x / sum(row) for x in row] for row in q]
    return q


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_sinkhorn_equals_the_slow_loop_and_leaves_out_what_does_not_count(dtype, tolerance):
    logits = random(7, 4, dtype=dtype) * 3
    counts = torch.tensor([1, 1, 0, 1, 1, 0, 1], dtype=torch.bool)
    q = sinkhorn_knopp(logits, counts)
    expected = torch.tensor(slow_sinkhorn(logits[counts].double().tolist()), dtype=dtype)
    assert torch.allclose(q[counts], expected, rtol=tolerance, atol=tolerance)
    assert torch.allclose(q.sum(1), torch.ones(7, dtype=dtype))


def test_sinkhorn_gives_every_code_an_equal_share_and_survives_small_temperatures():
    q = sinkhorn_knopp(random(64, 8) * 5, iterations=200)
    assert torch.allclose(q.sum(0), torch.full((8,), 8.0, dtype=torch.float64), rtol=1e-3)
    assert sinkhorn_knopp(torch.randn(20, 5) / 0.001).isfinite().all()
    assert sinkhorn_knopp(torch.randn(3, 5), torch.zeros(3, dtype=torch.bool)).isfinite().all()


def slow_loss(student, target, tau_s):
    s = [x / tau_s for x in student.tolist()]
    top = max(s)
    log_total = math.log(sum(math.exp(x - top) for x in s)) + top
    return -sum(p * (x - log_total) for p, x in zip(target.tolist(), s, strict=True))


@pytest.mark.parametrize("guard", ["center", "sinkhorn", "none"])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_token_and_class_terms_equal_the_slow_loop_under_every_guard(guard, dtype, tolerance):
    loss = SelfDistillationLoss(6, 0.3, guard=guard).to(dtype)
    loss.update_center(random(6, dtype=dtype, seed=3))
    assert loss.center.any() == (guard == "center")
    student, teacher = random(3, 4, 6, dtype=dtype), random(3, 4, 6, dtype=dtype, seed=1)
    weight = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1]])
    logits = (teacher - loss.center).double() / 0.5
    if guard == "sinkhorn":
        target = torch.zeros_like(logits)
        target[weight > 0] = torch.tensor(slow_sinkhorn(logits[weight > 0].tolist()), dtype=torch.float64)
    else:
        target = logits.exp() / logits.exp().sum(-1, keepdim=True)
    rows = [[slow_loss(student[b, n], target[b, n], 0.3) for n in range(4) if weight[b, n]] for b in range(3)]
    expected = sum(sum(row) / len(row) for row in rows if row) / 3
    assert loss(student, teacher, 0.5, weight).item() == pytest.approx(expected, rel=tolerance)
    if guard == "center":
        dropped = torch.tensor([True, False, True])
        expected = sum(slow_loss(student[b, 0], target[b, 0], 0.3) for b in (0, 2)) / 3
        assert loss(student[:, 0], teacher[:, 0], 0.5, dropped).item() == pytest.approx(expected, rel=tolerance)
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(lambda s: loss(s, teacher, 0.5, weight), student.requires_grad_())


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_reconstruction_of_masked_voxels_equals_the_slow_loop(dtype, tolerance):
    x, y = random(2, 3, 2, 4, 2, dtype=dtype), random(2, 3, 2, 4, 2, dtype=dtype, seed=1)
    hidden = random(2, 1, 2, 4, 2, seed=2) > 0
    rows = []
    for b in range(2):
        places = hidden[b, 0].nonzero().tolist()
        errors = [sum((x[b, c, i, j, k] - y[b, c, i, j, k]).item() ** 2 for c in range(3)) / 3 for i, j, k in places]
        rows.append(sum(errors) / len(errors))
    assert MaskedReconstructionLoss()(x, y, hidden).item() == pytest.approx(sum(rows) / 2, rel=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_reconstruction_of_all_voxels_is_the_plain_squared_error(dtype, tolerance):
    x, y = random(2, 1, 3, 4, 2, dtype=dtype), random(2, 1, 3, 4, 2, dtype=dtype, seed=1)
    everywhere = torch.ones(2, 1, 3, 4, 2, dtype=torch.bool)
    expected = sum((a - b) ** 2 for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)) / x.numel()
    assert MaskedReconstructionLoss()(x, y, everywhere).item() == pytest.approx(expected, rel=tolerance)


# ---- CASA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["residual", "plain"])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_both_forms_of_casa_are_direct_attention(form, dtype, tolerance):
    torch.manual_seed(0)
    casa = CrossAttentionAlignment(dim=12, heads=3, hidden=20, form=form).to(dtype).eval()
    query, target = random(2, 5, 12, dtype=dtype), random(2, 7, 12, dtype=dtype, seed=1)
    valid = torch.arange(14).view(2, 7) % 3 > 0
    expected = torch.empty_like(query)
    for b in range(2):
        kept = target[b, valid[b]]
        parts = []
        for rows in (slice(0, 4), slice(4, 8), slice(8, 12)):
            q, k, v = (
                query[b] @ casa.query.weight[rows].T,
                kept @ casa.key.weight[rows].T,
                kept @ casa.value.weight[rows].T,
            )
            share = (q @ k.T / 2).exp()
            parts.append(share / share.sum(1, keepdim=True) @ v)
        aligned = torch.cat(parts, 1) @ casa.out.weight.T
        h = None if form == "plain" else casa.attention_norm(query[b] + aligned)
        expected[b] = aligned if h is None else casa.output_norm(h + casa.feed_forward(h))
    assert torch.allclose(casa(query, target, valid), expected, rtol=tolerance, atol=tolerance)
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(
            lambda q, x: casa(q, x, valid).sum((0, 1)), (query.requires_grad_(), target.requires_grad_())
        )


# ---- sparse encoding -------------------------------------------------------------------------------------------------


def masked_image(seed=0):
    visible = torch.rand(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(seed)) > 0.6
    return random(2, 1, 16, 16, 16, dtype=torch.float32), visible


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_a_sparse_encoder_is_zero_where_the_image_is_hidden(kind):
    encoder = architecture(kind).build().encoder
    dense = copy.deepcopy(encoder)
    sparse = SparseEncoding(encoder)
    image, visible = masked_image()
    seen = visibility(visible, image.shape[2:])
    with sparse.restricted_to(visible):
        first = encoder(image * seen)
    for a, size in zip(first, (16, 8, 4), strict=True):
        assert (a * (1 - visibility(visible, (size,) * 3)) == 0).all()
    assert any(not torch.allclose(a, b) for a, b in zip(first, dense(image * seen), strict=True))
    for a, b in zip(encoder(image), dense(image), strict=True):  # outside the restriction it is dense
        assert torch.equal(a, b)
    assert [n for n, _ in encoder.named_parameters()] == [n for n, _ in dense.named_parameters()]


def test_a_sparse_encoder_that_sees_everything_is_dense():
    encoder = architecture().build().encoder
    image = masked_image()[0]
    dense = encoder(image)
    with SparseEncoding(encoder).restricted_to(torch.ones(2, 1, 4, 4, 4, dtype=torch.bool)):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(encoder(image), dense, strict=True))


def test_masked_norm_takes_its_statistics_over_visible_places():
    norm = nn.InstanceNorm3d(3, affine=True)
    nn.init.normal_(norm.weight)
    x, mask = random(2, 3, 4, 4, 4, dtype=torch.float32), torch.rand(2, 1, 4, 4, 4) > 0.4
    y = masked_instance_norm(x, mask.float(), norm)
    for b in range(2):
        for c in range(3):
            values = x[b, c][mask[b, 0]]
            expected = (values - values.mean()) / (values.var(correction=0) + norm.eps).sqrt() * norm.weight[c]
            assert torch.allclose(y[b, c][mask[b, 0]], expected + norm.bias[c], atol=1e-5)
    assert (y * ~mask == 0).all()


def test_coarser_places_are_visible_if_one_of_their_cells_is():
    visible = torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool)
    visible[0, 0, 3, 0, 0] = True
    assert visibility(visible, (2, 2, 2)).nonzero().tolist() == [[0, 0, 1, 0, 0]]
    assert visibility(visible, (8, 8, 8)).sum() == 8


# ---- the method ------------------------------------------------------------------------------------------------------

FORMS = [
    {},
    {"mask_mode": "tube", "mim_voxels": "all", "casa_target": "shared"},
    {"encoding": "sparse", "casa": "plain", "target_kv": "encoder"},
    {"encoding": "sparse", "collapse_guard": "sinkhorn", "weight_mim": 0.0},
]


def views_of(alice, image=None, step=0):
    """All pairs of given crops are sure; of the others' two, one is."""
    score = torch.tensor([0.9, 0.2]) if image is None else torch.ones(2)
    image = random(4, 1, 16, 16, 16, dtype=torch.float32) if image is None else image
    batch = {"image": image, "valid": torch.ones_like(image, dtype=torch.bool), "score": score}
    return alice.make_views(batch, torch.Generator().manual_seed(step))


def different_crops(seed=0):
    """Four crops of smooth waves, each of its own length and direction, with spots: (4, 1, 16, 16, 16)."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, 16)] * 3, indexing="ij"))
    direction = torch.randn(4, 3, generator=generator) * torch.tensor([3.0, 6.0, 12.0, 24.0])[:, None]
    waves = torch.einsum("bi,ixyz->bxyz", direction, place).sin()
    spots = torch.rand(4, 16, 16, 16, generator=generator) < torch.tensor([0.0, 0.02, 0.1, 0.3])[:, None, None, None]
    return (waves + 2 * spots)[:, None]


def test_the_student_predicts_the_teachers_class_token_of_the_other_volume():
    """Crop by crop from the equation: Q1 Q2 K1 K2 are paired as (Q1, K1), (Q2, K2), in both directions."""
    alice = build()
    with torch.no_grad():
        for p in alice.teacher.parameters():
            p.mul_(1.3)
        for p in alice.heads.parameters():
            p.mul_(4 if p.ndim > 1 else 0)  # or codes of untrained heads are nearly those of their biases, for any crop
    alice.heads.inter.update_center(random(16, dtype=torch.float32, seed=4))
    seen = views_of(alice, different_crops())

    def class_token(side, network, image):
        pooled = network.encoder(image)[alice.stage].flatten(2).mean(2)
        return alice.heads.get_submodule(side)["head"].class_token(pooled)[0]

    with torch.no_grad():
        students = [class_token("student", alice.network, seen["student"][i : i + 1]) for i in range(4)]
        teachers = [class_token("teacher", alice.teacher, seen["teacher"][i : i + 1]) for i in range(4)]
        targets = [((t - alice.heads.inter.center).double() / 0.01).softmax(0) for t in teachers]
    crossed, own = (
        sum(slow_loss(students[a].double(), targets[b], 0.1) for a, b in zip(range(4), partners, strict=True)) / 4
        for partners in ((2, 3, 0, 1), range(4))
    )
    assert abs(crossed - own) > 1e-4 * crossed
    assert alice(seen, 0.5).losses["inter"].item() == pytest.approx(crossed, rel=1e-5)


def test_the_student_sees_no_hidden_voxel_and_the_teacher_all():
    seen = views()
    everywhere = seen["hidden"].expand_as(seen["student"])
    assert (seen["student"][everywhere] == 0).all()
    assert (seen["student"][~everywhere & seen["inside"]] != 0).all()
    assert (seen["teacher"][seen["inside"]] != 0).all()
    assert not (seen["hidden"] & ~seen["inside"]).any()


@pytest.mark.parametrize("mim_voxels", ["masked", "all"])
def test_the_voxels_that_mim_voxels_names_count(mim_voxels):
    alice, seen = build(mim_voxels=mim_voxels), views()
    counted = seen["hidden"] if mim_voxels == "masked" else seen["inside"]
    with torch.no_grad():
        errors = (alice.network(seen["student"]) - seen["image"]).double().square()
    expected = sum(errors[b][counted[b]].mean().item() for b in range(4)) / 4
    assert alice(seen, 0.5).losses["mim"].item() == pytest.approx(expected, rel=1e-5)


def test_the_teachers_temperature_rises_over_three_percent_of_the_run():
    alice = build()
    rising = [alice._teacher_temperature(progress) for progress in (0, 0.015, 0.03, 0.5)]
    assert rising == pytest.approx([0.008, 0.009, 0.01, 0.01])


@pytest.mark.parametrize(("progress", "momentum"), [(0, 0.996), (0.5, 0.998), (1, 1.0)])
def test_network_and_heads_of_the_teacher_are_moving_averages(progress, momentum):
    alice = build()
    output = alice(views_of(alice), progress)
    sides = ((alice.teacher, alice.network), (alice.heads.teacher, alice.heads.student))
    with torch.no_grad():
        for _, student in sides:
            for p in student.parameters():
                p.add_(1)
    before = [[p.clone() for p in teacher.parameters()] for teacher, _ in sides]
    alice.after_step(output, progress)
    for olds, (teacher, student) in zip(before, sides, strict=True):
        for old, now, new in zip(olds, teacher.parameters(), student.parameters(), strict=True):
            assert torch.allclose(now, momentum * old + (1 - momentum) * new, atol=1e-6)


def test_the_teacher_has_the_batch_statistics_of_the_student():
    planned = architecture()
    planned.arch_kwargs["norm_op"] = "torch.nn.BatchNorm3d"
    alice = Alice(dataclasses.replace(build().setup, architecture=planned), AliceOptions(hidden=16, codes=16)).train()
    for _ in range(2):
        alice.after_step(alice(views_of(alice), 0.5), 0.5)
    own, student = dict(alice.teacher.named_buffers()), dict(alice.network.named_buffers())
    assert any(name.endswith("running_mean") and value.any() for name, value in own.items())
    assert all(torch.equal(value, student[name]) for name, value in own.items())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_all_its_parameters_and_every_term_reaches_the_encoder(form):
    alice = build(**form)
    seen = views_of(alice)
    output = alice(seen, 0.5)
    sum(alice.loss_weights[n] * v for n, v in output.losses.items()).backward()
    assert [n for n, p in alice.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None for p in alice.teacher.parameters())
    for name in output.losses:
        alice.zero_grad(set_to_none=True)
        alice(seen, 0.5).losses[name].backward()
        grads = [p.grad.norm().item() for p in alice.network.encoder.parameters() if p.grad is not None]
        assert max(grads) > 0, name
    alice.after_step(output, 0.5)


def test_unsure_pairs_have_no_inter_volume_term_and_change_no_other():
    alice = build()
    seen = views_of(alice)
    assert seen["sure"].tolist() == [True, False, True, False]
    dropped = alice(seen, 0.5)
    kept = alice({**seen, "sure": torch.ones(4, dtype=torch.bool)}, 0.5)
    assert dropped.losses["inter"] < kept.losses["inter"]
    assert dropped.losses["intra"] == kept.losses["intra"]
    assert dropped.losses["mim"] == kept.losses["mim"]
    assert dropped.diagnostics["sure_pairs"] == 0.5
    assert alice({**seen, "sure": torch.zeros(4, dtype=torch.bool)}, 0.5).losses["inter"] == 0


def test_a_shared_casa_is_the_students_at_once_and_an_averaged_one_is_not():
    for target, equal in (("shared", True), ("ema", False)):
        alice = build(casa_target=target)
        output = alice(views_of(alice), 0.5)
        with torch.no_grad():
            for p in alice.heads.student["casa"].parameters():
                p.add_(1)
        alice.after_step(output, 0.5)
        pairs = zip(alice.heads.student["casa"].parameters(), alice.heads.teacher["casa"].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == equal


def test_targets_attend_to_what_target_kv_names():
    for kv in ("decoder", "encoder"):
        alice = build(target_kv=kv)
        seen = views_of(alice)
        before = alice(seen, 0.5).losses
        with torch.no_grad():
            for p in alice.teacher.decoder.stages.parameters():
                p.mul_(1.5)
        after = alice(seen, 0.5).losses
        assert torch.isclose(before["inter"], after["inter"], rtol=1e-5)
        assert torch.isclose(before["intra"], after["intra"], rtol=1e-5) == (kv == "encoder")


ENTROPIES = ("mean_target_entropy", "target_entropy", "class_target_entropy")


def short_run(seed, steps, lr=LoopOptions.lr, **form):
    """Masked error (steps,) and entropies (steps, 3) of a run in which each step has crops of its own."""
    alice = build(seed, **form)
    optimizer = torch.optim.AdamW([p for p in alice.parameters() if p.requires_grad], lr)
    errors, entropies = [], []
    for step in range(steps):
        output = alice(views_of(alice, different_crops(100 * seed + step), step), step / steps)
        optimizer.zero_grad()
        sum(output.losses.values()).backward()
        optimizer.step()
        alice.after_step(output, step / steps)
        errors.append(output.losses["mim"].item())
        entropies.append([output.diagnostics[name].item() for name in ENTROPIES])
    return torch.tensor(errors), torch.tensor(entropies)


def test_the_masked_error_falls():
    errors, _ = short_run(0, 20, lr=3e-3)
    assert errors[-5:].mean() < 0.7 * errors[:5].mean()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sinkhorn_keeps_the_token_targets_off_both_ends_in_every_step(seed):
    _, entropies = short_run(seed, 30, collapse_guard="sinkhorn")
    mean_target, target, class_target = entropies[15:].T
    assert mean_target.min() > 0.3  # several codes are used
    assert 0.01 < target.min() <= target.max() < 0.5  # neither one-hot nor uniform
    assert class_target.min() > 0.99  # class tokens that are still alike share the codes equally by being uniform


def test_centring_does_not_keep_them_off_in_every_run():
    """What docs/alice.md says of the default guard; :meth:`Alice.warnings` names both ends."""
    runs = torch.stack([short_run(seed, 40, lr=1e-3)[1][20:] for seed in (1, 2)])
    lowest, highest = runs.amin((0, 1)), runs.amax((0, 1))
    print(f"center, least and largest of {ENTROPIES}: {lowest.tolist()}, {highest.tolist()}")
    assert lowest[0] < 0.05
    assert highest[2] > 0.95


# ---- any encoder -----------------------------------------------------------------------------------------------------


class SwinEncoder(nn.Module):
    """MONAI's SwinUNETR encoder as our networks see one: the image, then its maps."""

    def __init__(self, channels):
        from monai.networks.nets.swin_unetr import SwinTransformer

        super().__init__()
        self.swin = SwinTransformer(channels, 12, (2, 2, 2), (2, 2, 2), (1, 1, 1, 1), (1, 1, 1, 1))
        self.output_channels = [channels, *[12 * 2**i for i in range(4)]]
        self.strides = [[1] * 3, *[[2] * 3] * 4]

    def forward(self, x):
        return [x, *self.swin(x)[:4]]  # 32^3 leaves the fifth map one voxel


class SwinUNet(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.encoder = SwinEncoder(channels)
        self.decoder = SkipDecoder(self.encoder, channels, width=8, deep_supervision=False)

    def forward(self, x):
        return self.decoder(self.encoder(x))


def test_an_encoder_of_monai_is_pretrained_on_three_channels():
    pytest.importorskip("monai")
    torch.manual_seed(0)
    planned = dataclasses.replace(architecture(channels=3))
    object.__setattr__(planned, "build", lambda: SwinUNet(3))
    options = AliceOptions(hidden=16, codes=16)
    alice = Alice(Setup(planned, (32, 32, 32), (1.0, 1.0, 1.0), 2, False, ()), options).train()
    assert alice.cell == (16, 16, 16)
    batch = {"image": torch.randn(2, 3, 32, 32, 32), "valid": torch.ones(2, 1, 32, 32, 32, dtype=torch.bool)}
    seen = alice.make_views({**batch, "score": torch.ones(1)}, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW([p for p in alice.parameters() if p.requires_grad], 1e-3)
    errors = []
    for _ in range(3):
        output = alice(seen, 0.5)
        optimizer.zero_grad()
        sum(output.losses.values()).backward()
        optimizer.step()
        alice.after_step(output, 0.5)
        errors.append(output.losses["mim"].item())
    assert errors[-1] < errors[0]
    with pytest.raises(OptionError, match=r"encoding=sparse needs .* SwinEncoder holds"):
        Alice(alice.setup, AliceOptions(encoding="sparse"))


# ---- settings --------------------------------------------------------------------------------------------------------


def test_presets_are_settings_and_fields_beside_them_win():
    parsed = parse_settings(["mask_mode=block3d", "preset=a-code"], LoopOptions, AliceOptions)[AliceOptions]
    options = AliceOptions(**parsed)
    assert (options.mask_mode, options.mim_voxels, options.casa_target) == ("block3d", "masked", "shared")
    assert AliceOptions(**AliceOptions.presets["a-paper"]).encoding == "sparse"
    assert AliceOptions() == AliceOptions(casa="residual", target_kv="decoder", mim_voxels="masked")


@pytest.mark.parametrize(
    ("kind", "field", "value", "expected"),
    [
        (AliceOptions, "codes", 12, "a multiple of 8"),
        (AliceOptions, "codes", 0, "a multiple of 8"),
        (AliceOptions, "pairs", -1, r"in \[0, inf\)"),
        (AliceOptions, "mask_ratio", -3.0, r"in \(0, 1\)"),
        (AliceOptions, "mask_ratio", 1.0, r"in \(0, 1\)"),
        (AliceOptions, "score_threshold", 5.0, r"in \[-1, 1\]"),
        (AliceOptions, "ema_start", 1.5, r"in \[0, 1\]"),
        (AliceOptions, "teacher_temperature", 0.0, r"in \(0, inf\)"),
        (AliceOptions, "weight_inter", math.nan, r"in \[0, inf\)"),
        (AliceOptions, "weight_mim", math.inf, r"in \[-1, inf\)"),
        (SAMOptions, "features", 0, r"in \[1, inf\)"),
        (SAMOptions, "others", -1, r"in \[0, inf\)"),
        (MAEOptions, "mask_ratio", 1.2, r"in \(0, 1\)"),
        (MAEOptions, "samples", -2, r"in \[0, inf\)"),
    ],
)
def test_numbers_out_of_range_are_named(kind, field, value, expected):
    with pytest.raises(OptionError, match=rf"--set {field}={value}: expected .*{expected}"):
        kind(**{field: value})


@pytest.mark.parametrize("flag", ["pairs", "patients"])
def test_flags_of_alice_are_named_as_they_were_given_to_another_method(flag, capsys):
    value = {"pairs": "sam", "patients": "(.*)"}[flag]
    assert main(["pretrain", "mae", "Dataset001_None", "3d_fullres", f"--{flag}", value]) == 2
    assert f"--{flag} is for alice; mae draws no pairs" in capsys.readouterr().err


def test_mined_pairs_that_were_not_read_are_not_replaced_by_others():
    with pytest.raises(OptionError, match="alignment=sam: no pairs were read"):
        build(alignment="sam").source(1, 0, 0)


def test_words_that_no_setting_knows_are_named():
    with pytest.raises(OptionError, match="preset=b: expected one of a-code, a-paper"):
        parse_settings(["preset=b"], LoopOptions, AliceOptions)
    with pytest.raises(OptionError, match="mask_mode=cube: expected one of block3d, tube"):
        AliceOptions(mask_mode="cube")
