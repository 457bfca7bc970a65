"""`pretrain anatomix`: levels, pairs, losses and steps of the loop."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_invariance.losses.info_nce import SupervisedInfoNCE
from nnunet_invariance.networks.feature_levels import feature_maps, levels_of
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.pretraining.data.synthetic_pairs import (
    FIRST_HELD_OUT_NUMBER,
    VOLUMES_IN_TURN,
    PairIndexDataset,
    SyntheticPairGenerator,
    balanced_positions,
)
from nnunet_invariance.pretraining.engine.loop import Loop
from nnunet_invariance.pretraining.engine.method import Setup
from nnunet_invariance.pretraining.engine.options import LoopOptions
from nnunet_invariance.pretraining.engine.schedule import should_stop_early
from nnunet_invariance.pretraining.measures.label_retrieval import label_retrieval
from nnunet_invariance.pretraining.methods.anatomix import Anatomix, AnatomixPretrainingOptions
from nnunet_invariance.pretraining.methods.anatomix_networks import NETWORK_PRESETS
from tests.helpers.line_method import ONE_RANK, Bar
from tests.helpers.small_checkpoints import architecture
from tests.helpers.tiny_anatomix import make


def views(method, step=0, seed=0):
    batch = {k: v for k, v in method.dataset(10, seed, 0)[step].items() if k != "keys"}
    return method.make_views(batch, torch.Generator())


# ---- the maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize(
    ("stages", "names"),
    [
        (2, "encoder_0 encoder_1 decoder_0"),
        (3, "encoder_0 encoder_1 encoder_2 decoder_1 decoder_0"),
        (4, "encoder_1 encoder_2 encoder_3 decoder_2 decoder_1 decoder_0"),
        (5, "encoder_3 encoder_4 decoder_3 decoder_2 decoder_1 decoder_0"),
        (6, "encoder_4 encoder_5 decoder_3 decoder_2 decoder_1 decoder_0"),
    ],
)
def test_levels_describe_the_maps(network, stages, names):
    features = (4, 6, 8, 10, 12, 14)[:stages]
    planned = architecture(network, features=features)
    per_stage = ("n_conv_per_stage", "n_blocks_per_stage")
    planned.arch_kwargs.update({k: [1] * stages for k in planned.arch_kwargs if k in per_stage})
    built = planned.build()
    levels = levels_of(built)
    assert " ".join(level.name for level in levels) == names
    maps = feature_maps(built, torch.randn(1, 1, 64, 64, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(lv.channels, *lv.size((64, 64, 32))) for lv in levels]


def test_the_network_of_the_paper_has_its_maps_and_heads():
    preset = NETWORK_PRESETS["anatomix"]
    network = Architecture.from_plans(preset.architecture, 1, 1)
    method = Anatomix(Setup(network, (32, 32, 32), (1.0,) * 3, 2, True, ()), AnatomixPretrainingOptions())
    assert [(level.channels, level.stride[0]) for level in method.levels] == [
        (128, 8), (256, 16), (128, 8), (64, 4), (32, 2), (16, 1),
    ]  # fmt: skip
    assert sum(p.numel() for p in method.heads.parameters()) == 952_320
    assert method.batch_size == 1
    assert sum(p.numel() for p in method.network.parameters() if p.requires_grad) == 5_899_344


# ---- pairs ---------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_pairs_are_a_function_of_seed_and_number():
    method = make(batch_size=2)
    once, again = views(method), views(make(batch_size=2))
    assert once.keys() == again.keys()
    assert all(torch.equal(once[k], again[k]) for k in once)
    assert not torch.equal(once["image"], views(method, step=1)["image"])
    assert not torch.equal(once["image"], views(method, seed=1)["image"])
    assert once["image"].shape == (4, 1, 32, 32, 32)
    alone = method._views(*method._volumes(torch.device("cpu"), 0, (1,), 1), 0)  # the second pair of the first step
    assert torch.equal(alone["image"], once["image"][1::2])
    assert torch.equal(alone["encoder_1.index"][0], once["encoder_1.index"][1])


def test_no_number_is_used_twice_and_none_is_held_out():
    numbers = [
        n for rank in range(2) for step in range(5) for n in PairIndexDataset(3, 0, 5, rank)[step]["number"].tolist()
    ]
    assert sorted(numbers) == list(range(30))
    assert max(numbers) < FIRST_HELD_OUT_NUMBER


@pytest.mark.integration
def test_positions_are_different_and_have_the_label_of_the_cell_centre():
    method = make()
    parameters = method.pair_generator.sample(0, FIRST_HELD_OUT_NUMBER, augment=False)
    labels = method.pair_generator.volumes([parameters], torch.device("cpu")).labels[0, 0]
    made = method.held_out_views(FIRST_HELD_OUT_NUMBER)
    for level in method.levels:
        index, found = made[f"{level.name}.index"][0], made[f"{level.name}.labels"][0]
        assert len(index.unique()) == len(index) == 64
        stride, side = level.stride[0], level.size((32, 32, 32))[0]
        for place, label in zip(index[:20].tolist(), found[:20].tolist(), strict=True):
            z, y, x = (c * stride + stride // 2 for c in (place // side**2, place // side % side, place % side))
            assert labels[z, y, x] == label


@pytest.mark.parametrize("unit_range", [True, False])
def test_images_have_the_range_of_the_normalization(unit_range):
    image = make(unit_range=unit_range).held_out_views(FIRST_HELD_OUT_NUMBER)["image"]
    if unit_range:
        assert image.amin() == 0
        assert 0.9 < image.amax() < 1.5
    else:
        assert torch.allclose(image.mean((1, 2, 3, 4)), torch.zeros(2), atol=1e-5)
        assert torch.allclose(image.std((1, 2, 3, 4)), torch.ones(2), atol=1e-5)


@pytest.mark.integration
def test_a_small_patch_is_cropped_from_the_same_position_of_both_views():
    method = make(patch=(12, 40, 36), volume=48)
    assert views(method)["image"].shape == (2, 1, 12, 40, 36)
    parameters = method.pair_generator.sample(0, 3, augment=True)
    cut = replace(parameters.cuts[0], starts=parameters.cuts[0].starts[:1])
    whole = method.pair_generator.volumes([parameters], torch.device("cpu"))
    patch = method.pair_generator.patches(whole, [cut])
    box = (..., *(slice(a, a + n) for a, n in zip(cut.starts[0].tolist(), (12, 40, 36), strict=True)))
    assert all(torch.equal(a, b[box]) for a, b in zip(patch, whole, strict=True))


def test_the_patches_of_a_volume_are_different_and_the_first_ones_do_not_depend_on_their_number():
    generator = make(patch=(16, 16, 16), volume=32).pair_generator
    few, many = generator.sample(0, 5, augment=True, cuts=2), generator.sample(0, 5, augment=True, cuts=6)
    for one, same in zip(few.cuts, many.cuts[:2], strict=True):
        assert torch.equal(one.starts, same.starts)
        assert one.position_seed == same.position_seed
    assert len({tuple(cut.starts[0].tolist()) for cut in many.cuts}) == 6
    assert len({cut.position_seed for cut in many.cuts}) == 6


@pytest.mark.integration
@pytest.mark.parametrize("pretext", ["labels", "denoising"])
def test_a_step_has_the_same_patches_wherever_the_run_started(pretext, monkeypatch):
    def small():
        return make(patch=(16, 16, 16), volume=32, cuts=3, pretext=pretext, batch_size=2)

    method = small()
    synthesised = []
    make_volumes = method.pair_generator.volumes
    monkeypatch.setattr(
        method.pair_generator, "volumes", lambda p, device: synthesised.append(len(p)) or make_volumes(p, device)
    )
    seen = [views(method, step) for step in range(VOLUMES_IN_TURN + 2)]
    assert synthesised == [2] * VOLUMES_IN_TURN  # one synthesis per batch of volumes, not per step
    for step in (1, VOLUMES_IN_TURN + 1):
        continued = views(small(), step)
        assert all(torch.equal(continued[name], seen[step][name]) for name in continued)
    assert not torch.equal(seen[0]["image"], seen[VOLUMES_IN_TURN]["image"])


def test_every_volume_gives_each_of_its_patches_once_and_a_batch_has_different_volumes():
    dataset = PairIndexDataset(batch_size=3, seed=0, steps=24, rank=1, cuts=2)
    items = [dataset[step] for step in range(24)]
    patches = [(number, int(item["cut"])) for item in items for number in item["number"].tolist()]
    assert len(set(patches)) == len(patches) == 72
    assert len({number for number, _ in patches}) == 36
    assert min(number for number, _ in patches) == 72  # the numbers of rank 0 are below
    assert all(len(item["number"].unique()) == 3 for item in items)


@pytest.mark.parametrize(("patch", "cuts", "expected"), [(16, 0, 8), (24, 0, 2), (32, 0, 1), (32, 1, 1), (16, 30, 30)])
def test_by_default_there_are_as_many_patches_as_fill_a_volume(patch, cuts, expected):
    assert make(patch=(patch,) * 3, volume=32, cuts=cuts).cuts == expected


def test_a_patch_that_one_label_dominates_is_sampled_again():
    generator = SyntheticPairGenerator((8, 8, 8), volume=32)
    labels = torch.zeros(1, 32, 32, 32, dtype=torch.int16)
    labels[:, :, :, :4] = 1  # shares of label 0: 0.5 at x = 0, 0.75 at x = 2, 1 at x = 20
    candidates = [[0, 0, 20], [3, 0, 2], [5, 6, 0], [0, 0, 0]]
    too_uniform = candidates[:2] * 2  # of equals, the first one is used
    starts = generator._best_starts(labels.expand(2, 1, 32, 32, 32), torch.tensor([candidates, too_uniform]))
    assert starts.tolist() == [[5, 6, 0], [3, 0, 2]]


def test_positions_are_balanced_over_the_labels():
    labels = torch.cat([torch.full((n,), value) for value, n in enumerate((5000, 900, 100, 5))])
    index = torch.stack([balanced_positions(labels, 64, seed) for seed in range(40)])
    assert all(len(row.unique()) == 64 for row in index)
    counts = torch.stack([labels[row].bincount(minlength=4) for row in index]).float().mean(0)
    assert counts[3] > 4  # nearly all
    assert counts[:3].sub(20).abs().max() < 4  # equal shares; sampled uniformly, the first label had 53 of 64
    assert len(balanced_positions(labels[:10], 64, 0)) == 10


# ---- losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pretext", ["labels", "positions"])
def test_the_loss_equals_the_equation(pretext):
    method = make(pretext=pretext, batch_size=2, num_positions=8)
    made = views(method)
    losses = method(made, 0.0).losses
    maps = feature_maps(method.network, made["image"])
    for level, head, feature_map in zip(method.levels, method.heads, maps, strict=True):
        index, labels = made[f"{level.name}.index"], made[f"{level.name}.labels"]
        rows = torch.stack([feature_map[b].flatten(1)[:, index[b % 2]].T for b in range(4)])
        z = F.normalize(head(rows.flatten(0, 1)).view(4, 8, -1), dim=-1)
        total = 0.0
        for b in range(2):
            both = torch.cat((z[b], z[b + 2]))
            y = labels[b].repeat(2) if pretext == "labels" else torch.arange(8).repeat(2)
            s = both @ both.T / 0.33
            for i in range(16):
                others = [j for j in range(16) if j != i]
                positives = [j for j in others if y[j] == y[i]]
                total += torch.logsumexp(s[i, others], 0) - s[i, positives].mean()
        assert losses[level.name].item() == pytest.approx(total.item() / 32, rel=1e-4)


@pytest.mark.integration
@pytest.mark.parametrize("pretext", ["labels", "positions", "denoising"])
@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_gradients_reach_encoder_and_decoder_and_every_trained_parameter(network, pretext):
    method = make(network, pretext=pretext)
    losses = method(views(method), 0.0).losses
    sum(method.loss_weights[name] * value for name, value in losses.items()).backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    for part in (method.network.encoder, method.network.decoder):
        assert any(p.grad is not None and p.grad.norm() > 0 for p in part.parameters())


def test_the_target_of_denoising_has_the_geometry_of_the_input():
    method = make(pretext="denoising")
    made = views(method, step=2)
    for image, clean in zip(made["image"], made["clean"], strict=True):
        assert image.shape == clean.shape
        assert not torch.equal(image, clean)
        correlation = torch.corrcoef(torch.stack((image.flatten(), clean.flatten())))[0, 1]
        assert correlation > 0.5


@pytest.mark.parametrize("weights", [("none", "none"), ("inverse", "inverse_sqrt")])
def test_learned_is_0_for_equal_and_1_for_ideal_features(weights):
    method = make(anchor_class_weight=weights[0], denominator_class_weight=weights[1])
    made = views(method)
    for ideal in (False, True):
        handles = []
        for level, head in zip(method.levels, method.heads, strict=True):
            values = made[f"{level.name}.labels"].unique(return_inverse=True)
            count = len(values[0])
            corners = F.normalize(torch.eye(count) - 1 / count, dim=1) if ideal else torch.ones(count, 1)
            rows = corners[values[1]].repeat(2, 1, 1).flatten(0, 1)
            handles.append(head.register_forward_hook(lambda module, inputs, found, rows=rows: rows))
        assert method(made, 0.0).diagnostics["learned"].item() == pytest.approx(float(ideal), abs=1e-4)
        for handle in handles:
            handle.remove()


def test_no_free_features_have_a_lower_loss_than_ideal_ones():
    torch.manual_seed(0)
    labels, loss = torch.arange(4).repeat(1, 6), SupervisedInfoNCE(0.5)
    rows = torch.nn.Parameter(torch.randn(1, 24, 8))
    optimizer = torch.optim.Adam([rows], 0.3)
    for _ in range(60):
        optimizer.zero_grad()
        found = loss(rows, labels)
        found.backward()
        optimizer.step()
    ideal, chance = loss.bounds(labels)
    assert ideal <= found.item() + 1e-6
    assert found.item() == pytest.approx(ideal.item(), abs=1e-3)
    assert chance.item() == pytest.approx(math.log(23))


def test_features_that_have_learned_nothing_give_a_warning():
    assert "the held-out loss is that of equal features" in make().problems({"held_out_learned": 0.0})[0]
    assert make().problems({"held_out_learned": 0.2}) == []


@pytest.mark.integration
def test_the_held_out_loss_falls():
    method = make(unit_range=False)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 3e-3)

    def measured():
        method.eval()
        result = method.evaluate()
        method.train()
        return result

    for step in range(40):
        losses = method(views(method, step), 0.0).losses
        loss = sum(method.loss_weights[name] * value for name, value in losses.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 0:
            before = measured()
    after = measured()
    assert after["held_out_loss"] < before["held_out_loss"] - 0.1
    assert after["held_out_learned"] > max(before["held_out_learned"], 0)


def test_label_retrieval_equals_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 40, 5, generator=generator)
    labels = torch.randint(6, (40,), generator=generator)
    labels[0] = 17  # only itself has it
    hits: dict[int, list[bool]] = {}
    for i in range(40):
        others = [j for j in range(40) if j != i]
        if not any(labels[j] == labels[i] for j in others):
            continue
        best = max(others, key=lambda j: F.cosine_similarity(a[i], b[j], dim=0).item())
        hits.setdefault(int(labels[i]), []).append(bool(labels[best] == labels[i]))
    expected = sum(sum(h) / len(h) for h in hits.values()) / len(hits)
    assert label_retrieval(a, labels, b, labels, same_position=True).item() == pytest.approx(expected)
    assert label_retrieval(a, labels, a, labels).item() == 1


def test_label_retrieval_is_computed_in_float32_under_autocast():
    """Of neighbours on a circle, half precision takes many for equally near."""
    angle = torch.linspace(0, 1, 60)
    rows, labels = torch.stack((angle.cos(), angle.sin()), 1), torch.arange(60) // 2 % 5
    expected = label_retrieval(rows, labels, rows, labels, same_position=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(label_retrieval(rows, labels, rows, labels, same_position=True), expected)


# ---- the loop ------------------------------------------------------------------------------------------------------


def gradients_of_a_step(folder, *batches):
    """All gradients of one step of the loop on batches of pairs, and its loss, without the heads' batch statistics."""
    method = make(batch_size=len(batches[0]))
    loop = Loop(
        method,
        LoopOptions(grad_accum_steps=len(batches), grad_clip_norm=1e9, precision="fp32"),
        ONE_RANK,
        folder,
        {},
    )
    method.heads.eval()
    first = {"seed": torch.tensor(0), "cut": torch.tensor(0), "keys": ["pair"]}
    items = [{**first, "number": torch.tensor(numbers)} for numbers in batches]
    loop._train_step(items, Bar())
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}, loop.sums["loss"]


@pytest.mark.integration
def test_accumulated_pairs_have_the_gradients_of_the_larger_batch(tmp_path):
    (one, loss), (two, accumulated) = (gradients_of_a_step(tmp_path, *batches) for batches in (([0, 1],), ([0], [1])))
    assert accumulated == pytest.approx(loss, rel=1e-5)
    assert one.keys() == two.keys()
    assert len(one) > 20
    for name, gradient in one.items():
        # a bias before an instance norm has no effect; what is left of its gradient is rounding
        assert torch.allclose(two[name], gradient, rtol=1e-3, atol=1e-5), name


@pytest.mark.integration
@pytest.mark.parametrize("pretext", ["labels", "denoising"])
def test_half_precision_has_nearly_the_same_losses_and_finite_gradients(pretext):
    method = make(pretext=pretext)
    seen = views(method)
    full = method(seen, 0.5).losses
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = method(seen, 0.5).losses
    sum(half.values()).backward()
    for name, loss in half.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(full[name].item(), rel=0.05)
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    assert len(gradients) > 20
    assert all(g.isfinite().all() for g in gradients)


def test_a_run_stops_early_after_the_patience():
    options = LoopOptions(epochs=30, patience=0.1)
    losses = [5.0, 4.0, 3.0, 3.5, 3.2]
    history = [{"held_out_loss": x} for x in losses]
    assert not should_stop_early(history, options)
    assert should_stop_early([*history, {"held_out_loss": 3.1}], options)
    assert not should_stop_early([*history, {"held_out_loss": 2.9}], options)
    assert not should_stop_early([*history, *history], LoopOptions(epochs=30))
    assert not should_stop_early([{"loss": 1.0}] * 9, options)


class Drawn(TorchDispatchMode):
    """Counts the random numbers that the host draws."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += result.numel() if "generator" in (kwargs or {}) else 0
        return result


def test_the_host_draws_few_numbers_for_a_pair():
    """A number per voxel, or a permutation of the voxels, would take longer than the GPU needs for the whole pair."""
    pairs = SyntheticPairGenerator((64, 64, 64), 64)
    assert len(pairs.engine.bank) > 0  # made once, before the first pair
    for number in range(5):
        with Drawn() as drawn:
            pairs.sample(seed=0, number=number, augment=True)
        assert 1000 < drawn.count < 0.1 * 64**3
