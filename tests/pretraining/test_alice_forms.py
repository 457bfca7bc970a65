"""Masks, sparse encoding, CASA, targets, collapse guards and presets of Alice, against properties and slow loops."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from nnunet_invariance.augmentation.masking import sample_block_mask, sample_tube_mask
from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import OptionError
from nnunet_invariance.losses.masked_reconstruction import MaskedReconstructionLoss
from nnunet_invariance.losses.self_distillation import SelfDistillationLoss
from nnunet_invariance.losses.sinkhorn import sinkhorn_knopp
from nnunet_invariance.networks.architectures.skip_decoder import SkipDecoder
from nnunet_invariance.networks.heads.casa import CrossAttentionAlignment
from nnunet_invariance.networks.sparse import SparseEncoding, masked_instance_norm, visibility
from nnunet_invariance.pretraining.engine.method import Setup
from nnunet_invariance.pretraining.engine.settings import make_method_options, parse_settings
from nnunet_invariance.pretraining.methods.alice import Alice, AliceOptions
from nnunet_invariance.pretraining.methods.alice_options import AUTHORS
from nnunet_invariance.pretraining.methods.mae import MAEOptions
from nnunet_invariance.pretraining.methods.sam import SAMOptions
from tests.helpers.distributed_alice import build
from tests.helpers.planned_networks import architecture
from tests.helpers.slow_losses import random, slow_loss

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_the_tube_mask_hides_whole_columns_twelve_of_sixteen():
    cells = torch.ones(3, 1, 4, 4, 4, dtype=torch.bool)
    hidden = sample_tube_mask(cells, 0.75, torch.Generator().manual_seed(0))
    assert (hidden.all(2) == hidden.any(2)).all()
    assert hidden[:, 0, 0].flatten(1).sum(1).tolist() == [12] * 3
    assert not torch.equal(hidden[0], hidden[1])
    cells[:, :, 2] = False  # padding is not hidden
    assert not (sample_tube_mask(cells, 0.75, torch.Generator()) & ~cells).any()


def test_a_tube_is_parallel_to_the_given_axis():
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


def test_a_cell_stays_visible_in_every_small_grid():
    one = torch.zeros(2, 1, 3, 2, 2, dtype=torch.bool)
    one[0, :, 1, 1, 1] = True  # one cell
    one[1, :, :, 0, 0] = True  # one column of three
    assert sample_block_mask(one, 0.75, torch.Generator()).flatten(1).sum(1).tolist() == [0, 2]
    assert not sample_tube_mask(one, 0.75, torch.Generator()).any()


@pytest.mark.parametrize("mask_mode", ["block3d", "tube"])
def test_a_sparse_student_of_small_bodies_has_finite_diagnostics(mask_mode):
    alice = build(encoding="sparse", target_tokens="decoder", mask_mode=mask_mode)
    valid = torch.zeros(4, 1, 16, 16, 16, dtype=torch.bool)
    valid[..., :3, :3, :3] = True  # within one cell
    batch = {"image": random(4, 1, 16, 16, 16, dtype=torch.float32) * valid, "valid": valid, "score": torch.ones(2)}
    output = alice(alice.make_views(batch, torch.Generator().manual_seed(0)), 0.5)
    assert all(value.isfinite() for value in (*output.losses.values(), *output.diagnostics.values()))
    sum(output.losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in alice.parameters())


def test_the_block_mask_hides_its_fraction_of_single_cells():
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
def test_sinkhorn_equals_the_slow_loop_and_excludes_masked_rows(dtype, tolerance):
    logits = random(7, 4, dtype=dtype) * 3
    counts = torch.tensor([1, 1, 0, 1, 1, 0, 1], dtype=torch.bool)
    q = sinkhorn_knopp(logits, counts)
    expected = torch.tensor(slow_sinkhorn(logits[counts].double().tolist()), dtype=dtype)
    assert torch.allclose(q[counts], expected, rtol=tolerance, atol=tolerance)
    assert torch.allclose(q.sum(1), torch.ones(7, dtype=dtype))


def test_sinkhorn_gives_every_prototype_an_equal_share_at_small_temperatures_too():
    q = sinkhorn_knopp(random(64, 8) * 5, iterations=200)
    assert torch.allclose(q.sum(0), torch.full((8,), 8.0, dtype=torch.float64), rtol=1e-3)
    assert sinkhorn_knopp(torch.randn(20, 5) / 0.001).isfinite().all()
    assert sinkhorn_knopp(torch.randn(3, 5), torch.zeros(3, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize("guard", ["center", "sinkhorn", "none"])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_token_and_class_losses_equal_the_slow_loop_with_every_guard(guard, dtype, tolerance):
    loss = SelfDistillationLoss(6, 0.3, collapse_guard=guard).to(dtype)
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
def test_a_sparse_encoder_is_zero_in_hidden_cells(kind):
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


def test_a_sparse_encoder_without_a_mask_is_dense():
    encoder = architecture().build().encoder
    image = masked_image()[0]
    dense = encoder(image)
    with SparseEncoding(encoder).restricted_to(torch.ones(2, 1, 4, 4, 4, dtype=torch.bool)):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(encoder(image), dense, strict=True))


def test_the_masked_norm_uses_statistics_of_visible_positions():
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


def test_coarser_positions_are_visible_if_one_of_their_cells_is():
    visible = torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool)
    visible[0, 0, 3, 0, 0] = True
    assert visibility(visible, (2, 2, 2)).nonzero().tolist() == [[0, 0, 1, 0, 0]]
    assert visibility(visible, (8, 8, 8)).sum() == 8


# ---- any encoder -----------------------------------------------------------------------------------------------------


class SwinEncoder(nn.Module):
    """MONAI's SwinUNETR encoder with the interface of our encoders: it returns the image, then its maps."""

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


@pytest.mark.integration
def test_an_encoder_of_monai_is_pretrained_on_three_channels():
    pytest.importorskip("monai")
    torch.manual_seed(0)
    planned = dataclasses.replace(architecture(channels=3))
    object.__setattr__(planned, "build", lambda: SwinUNet(3))
    options = AliceOptions(head_width=16, num_prototypes=16)
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
    with pytest.raises(OptionError, match=r"encoding=sparse needs .* SwinEncoder contains"):
        Alice(alice.setup, AliceOptions(encoding="sparse", target_tokens="decoder"))


# ---- settings --------------------------------------------------------------------------------------------------------


def test_presets_set_fields_and_given_fields_take_precedence():
    parsed = parse_settings(["mask_mode=block3d", "preset=release"], AliceOptions)
    options = make_method_options(Alice, parsed.method)
    assert options == AliceOptions.from_preset("release", mask_mode="block3d")
    assert (options.mask_mode, options.mim_voxels, options.casa_target) == ("block3d", "masked", "shared")
    own = {
        "release": {
            "mask_mode": "tube",
            "casa": "residual",
            "target_tokens": "decoder",
            "casa_target": "shared",
            "weight_mim": 5.0,
        },
        "paper": {"encoding": "sparse", "casa": "plain", "target_tokens": "encoder"},
    }
    assert AliceOptions.presets == {name: {**AUTHORS, **fields} for name, fields in own.items()}
    assert AliceOptions() == AliceOptions(casa="none", collapse_guard="sinkhorn", mim_voxels="masked")


def test_automatic_options_follow_from_the_number_of_steps_and_are_recorded():
    assert AliceOptions().resolve(300).ema_start == pytest.approx(1 - 20 / 300)
    assert AliceOptions(ema_start=0.5).resolve(300).ema_start == 0.5
    alice = Alice(dataclasses.replace(build().setup, steps=100), AliceOptions(head_width=16, num_prototypes=16))
    assert alice.options.to_dict()["ema_start"] == 0.9
    assert parse_settings(["ema_start=auto", "lr=auto"], AliceOptions).method == {"ema_start": None}
    with pytest.raises(OptionError, match="mask_ratio=auto: 'auto' is not a valid float"):
        parse_settings(["mask_ratio=auto"], AliceOptions)


def test_a_sparse_student_predicts_decoder_tokens():
    with pytest.raises(OptionError, match="'target_tokens' is 'encoder'; expected decoder with encoding=sparse"):
        AliceOptions(encoding="sparse")


@pytest.mark.parametrize(
    ("kind", "field", "value", "expected"),
    [
        (AliceOptions, "num_prototypes", 12, "a positive multiple of 8"),
        (AliceOptions, "num_prototypes", 0, "a positive multiple of 8"),
        (AliceOptions, "batch_size", -1, "at least 0"),
        (AliceOptions, "mask_ratio", -3.0, r"in \(0, 1\)"),
        (AliceOptions, "mask_ratio", 1.0, r"in \(0, 1\)"),
        (AliceOptions, "score_threshold", 5.0, r"in \[-1, 1\]"),
        (AliceOptions, "ema_start", 1.5, r"in \[0, 1\]"),
        (AliceOptions, "teacher_temperature", 0.0, r"in \(0, inf\)"),
        (AliceOptions, "weight_inter", math.nan, r"in \[0, inf\)"),
        (AliceOptions, "weight_mim", math.inf, r"in \[0, inf\), or None"),
        (SAMOptions, "features", 0, "at least 1"),
        (SAMOptions, "num_cross_sample", -1, "at least 0"),
        (MAEOptions, "mask_ratio", 1.2, r"in \(0, 1\)"),
        (MAEOptions, "batch_size", -2, "at least 0"),
    ],
)
def test_options_out_of_range_are_named(kind, field, value, expected):
    with pytest.raises(OptionError, match=rf"'{field}' is {value}; expected .*{expected}"):
        kind(**{field: value})


@pytest.mark.parametrize("flag", ["alignment", "patients"])
def test_flags_of_alice_are_refused_for_another_method(flag, capsys):
    value = {"alignment": "sam", "patients": "(.*)"}[flag]
    assert main(["pretrain", "mae", "Dataset001_None", "3d_fullres", f"--{flag}", value]) == 2
    assert f"--{flag} is an option of alice, not of mae" in capsys.readouterr().err


def test_missing_mined_pairs_are_an_error():
    with pytest.raises(OptionError, match="alignment=sam: no mined pairs were read"):
        build(alignment="sam").dataset(1, 0, 0)


def test_unknown_values_are_named():
    with pytest.raises(OptionError, match="preset=b: expected one of the presets of AliceOptions: release, paper"):
        make_method_options(Alice, {"preset": "b"})
    with pytest.raises(OptionError, match="'mask_mode' is 'cube'; expected one of 'block3d', 'tube'"):
        AliceOptions(mask_mode="cube")
