"""The losses of Alice, the input of the student, the moving averages of the teacher, and collapse."""

import dataclasses
import itertools
import math

import pytest
import torch

from nnunet_invariance.networks.planned import decode
from nnunet_invariance.pretraining.methods.alice import Alice, AliceOptions
from tests.helpers.distributed_alice import AUTHORS_FORM, build, views
from tests.helpers.planned_networks import architecture
from tests.helpers.slow_losses import random, slow_loss

FORMS = [
    {},
    {"target_tokens": "decoder"},
    {"encoding": "sparse", "target_tokens": "decoder", "weight_inter": 1.0, "weight_mim": 0.0},
    AUTHORS_FORM,
    {**AUTHORS_FORM, "mask_mode": "tube", "mim_voxels": "all", "casa_target": "shared"},
    {**AUTHORS_FORM, "encoding": "sparse", "casa": "plain", "target_tokens": "encoder"},
    {**AUTHORS_FORM, "encoding": "sparse", "collapse_guard": "sinkhorn"},
]


def views_of(alice, image=None, step=0):
    """The views of given crops, whose pairs are all confident, or of two pairs of which one is confident."""
    score = torch.tensor([0.9, 0.2]) if image is None else torch.ones(2)
    image = random(4, 1, 16, 16, 16, dtype=torch.float32) if image is None else image
    batch = {"image": image, "valid": torch.ones_like(image, dtype=torch.bool), "score": score}
    return alice.make_views(batch, torch.Generator().manual_seed(step))


def different_crops(seed=0):
    """Four crops (4, 1, 16, 16, 16) of smooth waves of different lengths and directions, with spots."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, 16)] * 3, indexing="ij"))
    direction = torch.randn(4, 3, generator=generator) * torch.tensor([3.0, 6.0, 12.0, 24.0])[:, None]
    waves = torch.einsum("bi,ixyz->bxyz", direction, place).sin()
    spots = torch.rand(4, 16, 16, 16, generator=generator) < torch.tensor([0.0, 0.02, 0.1, 0.3])[:, None, None, None]
    return (waves + 2 * spots)[:, None]


def test_the_student_predicts_the_teachers_class_token_of_the_other_volume():
    """Compared with the equation, crop by crop: the pairs are (Q1, K1) and (Q2, K2), in both directions."""
    alice = build(seed=1, **AUTHORS_FORM)  # whose class tokens differ enough between the crops
    with torch.no_grad():
        for p in alice.teacher.parameters():
            p.mul_(1.3)
        for p in alice.heads.parameters():
            p.mul_(4 if p.ndim > 1 else 0)  # otherwise the logits of untrained heads depend mainly on their biases
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


@pytest.mark.parametrize("target_tokens", ["decoder", "encoder"])
def test_the_token_loss_equals_the_equation_and_no_query_attends_to_padding(target_tokens):
    """Compared with the equation, crop by crop; the test removes the padded tokens that the method masks."""
    alice = build(**{**AUTHORS_FORM, "target_tokens": target_tokens})
    with torch.no_grad():
        for p in alice.teacher.parameters():
            p.mul_(1.3)
        for p in alice.heads.parameters():
            p.mul_(4 if p.ndim > 1 else 0)
    alice.heads.intra.update_center(random(16, dtype=torch.float32, seed=4))
    seen, terms = views(), []
    assert not seen["encoder_valid"].all()
    assert not seen["decoder_valid"].all()

    def tokens(feature_map):
        return feature_map.flatten(2).transpose(1, 2)

    def attend(side, query, keys, valid):
        return alice.heads.get_submodule(side)["casa"](query, keys[:, valid], torch.ones(1, int(valid.sum())).bool())

    for i in range(4):
        encoder_valid, decoder_valid = seen["encoder_valid"][i], seen["decoder_valid"][i]
        with torch.no_grad():
            sides = {}
            for side, network in (("student", alice.network), ("teacher", alice.teacher)):
                skips = network.encoder(seen[side][i : i + 1])
                head = alice.heads.get_submodule(side)["head"]
                decoded = decode(network.decoder, skips)[alice.decoder_stage]
                sides[side] = head.encoder_tokens(tokens(skips[alice.stage])), head.decoder_tokens(tokens(decoded))
            query = sides["student"][0]
            s = attend("student", query, sides["student"][1], decoder_valid)[0]
            kind = ("encoder", "decoder").index(target_tokens)
            t = attend("teacher", query, sides["teacher"][kind], (encoder_valid, decoder_valid)[kind])[0]
            targets = ((t - alice.heads.intra.center).double() / 0.01).softmax(1)
        rows = encoder_valid.nonzero()[:, 0].tolist()
        terms.append(sum(slow_loss(s[n].double(), targets[n], 0.1) for n in rows) / len(rows))
    assert alice(seen, 0.5).losses["intra"].item() == pytest.approx(sum(terms) / 4, rel=1e-5)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_the_loss_of_hidden_tokens_equals_the_equation(kind):
    """Compared with the equation, token by token, in crops of which two have padding."""
    alice = build(target_tokens=kind, collapse_guard="none")
    with torch.no_grad():
        for p in alice.teacher.parameters():
            p.mul_(1.3)
        for p in alice.heads.parameters():
            p.mul_(4 if p.ndim > 1 else 0)
    seen, terms = views(), []
    cell = alice.cell if kind == "encoder" else alice.decoder_cell
    for i in range(4):
        logits = {}
        for side, network in (("student", alice.network), ("teacher", alice.teacher)):
            with torch.no_grad():
                skips = network.encoder(seen[side][i : i + 1])
                maps = {"encoder": skips[alice.stage], "decoder": decode(network.decoder, skips)[alice.decoder_stage]}
                rows = maps[kind].flatten(2).transpose(1, 2)
                logits[side] = getattr(alice.heads.get_submodule(side)["head"], f"{kind}_tokens")(rows)[0]
        targets = (logits["teacher"].double() / 0.07).softmax(1)
        grid = [n // c for n, c in zip((16, 16, 16), cell, strict=True)]
        counted = []
        for n, place in enumerate(itertools.product(*map(range, grid))):
            mask_cell = tuple(a * c // size for a, c, size in zip(place, cell, alice.cell, strict=True))
            if seen["hidden_cells"][(i, 0, *mask_cell)] and seen[f"{kind}_valid"][i, n]:
                counted.append(slow_loss(logits["student"][n].double(), targets[n], 0.1))
        terms.append(sum(counted) / len(counted))
    assert alice(seen, 0.5).losses["intra"].item() == pytest.approx(sum(terms) / 4, rel=1e-5)


def rise_of_the_token_loss(alice):
    """How much the token loss rises with the teacher's tokens of another volume, as a fraction of its range."""
    seen = views_of(alice, different_crops())
    optimizer = torch.optim.AdamW([p for p in alice.parameters() if p.requires_grad], 5e-3)
    for _ in range(60):
        output = alice(seen, 0.5)
        optimizer.zero_grad()
        (output.losses["intra"] + output.losses["mim"]).backward()
        optimizer.step()
        alice.after_step(output, 0.0)
    with torch.no_grad():
        own = alice(seen, 0.5)
        entropy = own.diagnostics["target_entropy"] * math.log(alice.options.num_prototypes)
        other = alice({**seen, "teacher": seen["teacher"].roll(1, 0)}, 0.5)
    return ((other.losses["intra"] - own.losses["intra"]) / (math.log(alice.options.num_prototypes) - entropy)).item()


@pytest.mark.integration
@pytest.mark.parametrize("target_tokens", ["decoder", "encoder"])
def test_the_token_loss_depends_on_the_teachers_tokens(target_tokens):
    """The range of the loss is from a uniform prediction, log K, to the entropy of the targets."""
    assert rise_of_the_token_loss(build(ema_start=0.9, target_tokens=target_tokens)) > 0.5


@pytest.mark.integration
def test_the_token_loss_of_the_release_does_not_depend_on_the_teachers_tokens():
    """As docs/alice.md states: the residual connection hands the student's own token to the target."""
    assert abs(rise_of_the_token_loss(build(ema_start=0.9, **AUTHORS_FORM))) < 0.05


def test_the_weight_of_the_reconstruction_depends_on_the_range_of_intensities():
    setup = build().setup
    for unit_range, given, weight in ((False, None, 1.0), (True, None, 10.0), (True, 0.0, 0.0), (False, 3.0, 3.0)):
        options = AliceOptions(head_width=16, num_prototypes=16, weight_mim=given)
        alice = Alice(dataclasses.replace(setup, unit_range=unit_range), options)
        assert alice.loss_weights == {"inter": 0.0, "intra": 1.0, "mim": weight}


def test_the_inter_volume_loss_is_off_by_default_only_with_instance_norm():
    assert build().loss_weights["inter"] == 0
    assert build(weight_inter=0.5).loss_weights["inter"] == 0.5
    planned = architecture()
    planned.arch_kwargs["norm_op"] = "torch.nn.BatchNorm3d"
    setup = dataclasses.replace(build().setup, architecture=planned)
    assert Alice(setup, AliceOptions(head_width=16, num_prototypes=16)).loss_weights["inter"] == 1


def test_hidden_voxels_are_zero_for_the_student_only():
    seen = views()
    everywhere = seen["hidden"].expand_as(seen["student"])
    assert (seen["student"][everywhere] == 0).all()
    assert (seen["student"][~everywhere & seen["valid_mask"]] != 0).all()
    assert (seen["teacher"][seen["valid_mask"]] != 0).all()
    assert not (seen["hidden"] & ~seen["valid_mask"]).any()


@pytest.mark.parametrize("mim_voxels", ["masked", "all"])
def test_the_reconstruction_uses_the_voxels_of_mim_voxels(mim_voxels):
    alice, seen = build(mim_voxels=mim_voxels), views()
    counted = seen["hidden"] if mim_voxels == "masked" else seen["valid_mask"]
    with torch.no_grad():
        errors = (alice.network(seen["student"]) - seen["image"]).double().square()
    expected = sum(errors[b][counted[b]].mean().item() for b in range(4)) / 4
    assert alice(seen, 0.5).losses["mim"].item() == pytest.approx(expected, rel=1e-5)


def test_the_teachers_temperature_rises_over_three_percent_of_the_run():
    alice = build()
    rising = [alice._teacher_temperature(progress) for progress in (0, 0.015, 0.03, 0.5)]
    assert rising == pytest.approx([0.04, 0.055, 0.07, 0.07])


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
    alice = Alice(
        dataclasses.replace(build().setup, architecture=planned), AliceOptions(head_width=16, num_prototypes=16)
    ).train()
    for _ in range(2):
        alice.after_step(alice(views_of(alice), 0.5), 0.5)
    own, student = dict(alice.teacher.named_buffers()), dict(alice.network.named_buffers())
    assert any(name.endswith("running_mean") and value.any() for name, value in own.items())
    assert all(torch.equal(value, student[name]) for name, value in own.items())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_all_its_parameters_and_every_loss_reaches_the_encoder(form):
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


def test_pairs_below_the_threshold_have_no_inter_volume_loss_and_keep_the_others():
    alice = build(weight_inter=1.0)
    seen = views_of(alice)
    assert seen["confident"].tolist() == [True, False, True, False]
    dropped = alice(seen, 0.5)
    kept = alice({**seen, "confident": torch.ones(4, dtype=torch.bool)}, 0.5)
    assert dropped.losses["inter"] < kept.losses["inter"]
    assert dropped.losses["intra"] == kept.losses["intra"]
    assert dropped.losses["mim"] == kept.losses["mim"]
    assert dropped.diagnostics["confident_pairs"] == 0.5
    assert alice({**seen, "confident": torch.zeros(4, dtype=torch.bool)}, 0.5).losses["inter"] == 0


def test_a_shared_casa_equals_the_students_and_an_averaged_one_does_not():
    for target, equal in (("shared", True), ("ema", False)):
        alice = build(casa="residual", casa_target=target)
        output = alice(views_of(alice), 0.5)
        with torch.no_grad():
            for p in alice.heads.student["casa"].parameters():
                p.add_(1)
        alice.after_step(output, 0.5)
        pairs = zip(alice.heads.student["casa"].parameters(), alice.heads.teacher["casa"].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == equal


@pytest.mark.parametrize("casa", ["none", "residual"])
def test_targets_are_the_tokens_of_target_tokens(casa):
    for kv in ("decoder", "encoder"):
        alice = build(**{**AUTHORS_FORM, "casa": casa, "target_tokens": kv})
        with torch.no_grad():
            for p in alice.heads.parameters():
                p.mul_(4 if p.ndim > 1 else 1)  # otherwise the tokens of untrained heads hardly differ
        seen = views_of(alice)
        before = alice(seen, 0.5).losses
        with torch.no_grad():
            for p in alice.teacher.decoder.stages.parameters():
                p.mul_(1.5)
        after = alice(seen, 0.5).losses
        assert torch.isclose(before["inter"], after["inter"], rtol=1e-5)
        assert torch.isclose(before["intra"], after["intra"], rtol=1e-5) == (kv == "encoder")


ENTROPIES = ("mean_target_entropy", "target_entropy", "class_target_entropy")


def short_run(seed, steps, lr=1e-4, **form):
    """Masked error (steps,) and entropies (steps, 3) of a run with different crops in every step."""
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
        entropies.append([output.diagnostics.get(name, torch.tensor(torch.nan)).item() for name in ENTROPIES])
    return torch.tensor(errors), torch.tensor(entropies)


@pytest.mark.integration
def test_the_masked_error_falls():
    errors, _ = short_run(0, 20, lr=3e-3)
    assert errors[-5:].mean() < 0.7 * errors[:5].mean()


@pytest.mark.integration
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sinkhorn_prevents_a_collapse_of_the_token_targets_in_every_step(seed):
    _, entropies = short_run(seed, 30, **{**AUTHORS_FORM, "collapse_guard": "sinkhorn"})
    mean_target, target, class_target = entropies[15:].T
    assert mean_target.min() > 0.3  # several prototypes are used
    assert 0.01 < target.min() <= target.max() < 0.5  # neither one-hot nor uniform
    assert class_target.min() > 0.99  # uniform targets satisfy the equal-usage constraint


@pytest.mark.integration
def test_centering_does_not_prevent_a_collapse_in_every_run():
    """As docs/alice.md states for the guard of the authors; :meth:`Alice.problems` names both kinds of collapse."""
    runs = torch.stack([short_run(seed, 40, lr=1e-3, **AUTHORS_FORM)[1][20:] for seed in (1, 2)])
    lowest, highest = runs.amin((0, 1)), runs.amax((0, 1))
    print(f"center, least and largest of {ENTROPIES}: {lowest.tolist()}, {highest.tolist()}")
    assert lowest[0] < 0.05
    assert highest[2] > 0.95
