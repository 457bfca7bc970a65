"""Steps with an auxiliary loss, on AliceTrainer: schedule, losses, gradients, memory, seeds."""

import copy
import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_invariance.augmentation.views import split_views
from nnunet_invariance.errors import DeviceMemoryError, NonFiniteLossError
from nnunet_invariance.losses.info_nce import PatchInfoNCE
from nnunet_invariance.networks.heads.projection import gather_positions, sample_positions
from nnunet_invariance.trainers.schedule import WarmupPolySchedule, ramp
from tests.helpers.tiny_trainers import assert_same, log_of, make_trainer, started, values, write_weights

pytestmark = pytest.mark.usefixtures("results")


# ---- schedule --------------------------------------------------------------------------------------------------------


def test_schedule_is_polynomial_with_linear_warmup_and_frozen_epochs():
    layers = [torch.nn.Linear(1, 1) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": layer.parameters()} for layer in layers], 1.0)
    schedule = WarmupPolySchedule(optimizer, base_rates=(1.0, 0.1), frozen_epochs=(0, 3), warmup=(0.4, 0.0), epochs=10)
    rates = []
    for epoch in range(10):
        schedule.step(epoch)
        rates.append([group["lr"] for group in optimizer.param_groups])
    poly = [(1 - e / 10) ** 0.9 for e in range(10)]
    expected = [poly[0] / 4, poly[1] / 2, poly[2] * 3 / 4, *poly[3:]]
    assert [r[0] for r in rates] == pytest.approx(expected)
    assert [r[1] for r in rates] == pytest.approx([0, 0, 0, *(0.1 * p for p in poly[3:])])


def test_the_schedule_without_warmup_equals_nnunets():
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    optimizers = [torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), 0.01) for _ in range(2)]
    stock = PolyLRScheduler(optimizers[0], 0.01, 7)
    ours = WarmupPolySchedule(optimizers[1], (0.01,), (0,), (0.0,), 7)
    for epoch in range(7):
        stock.step(epoch)
        ours.step(epoch)
        assert optimizers[0].param_groups[0]["lr"] == optimizers[1].param_groups[0]["lr"]


def test_ramp_is_linear_up_to_its_share():
    assert [ramp(p, 0.5) for p in (0, 0.25, 0.5, 0.75)] == [0, 0.5, 1, 1]
    assert ramp(0, 0) == 1


def test_aux_weight_follows_the_ramp(tiny):
    trainer = make_trainer(tiny, "AliceTrainer_scratch_10epochs", aux_weight=0.4, aux_ramp=0.5)
    weights = []
    for trainer.current_epoch, trainer.step_in_epoch in [(0, 0), (0, 1), (2, 1), (5, 0), (9, 1)]:
        weights.append(trainer.aux_weight)
    assert weights == pytest.approx([0, 0.04, 0.2, 0.4, 0.4])


def test_parameter_groups_have_their_own_learning_rates(tiny):
    write_weights(tiny)
    trainer, _ = started(tiny, "AliceTrainer", encoder_lr_factor=0.2)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([0.01, 0.002, 0.01])
    modules = (trainer.network, trainer.network.encoder, trainer.aux)
    names = [{id(p) for p in module.parameters()} for module in modules]
    groups = [{id(p) for p in group["params"]} for group in trainer.optimizer.param_groups]
    assert groups == [names[0] - names[1], names[1], names[2]]


def test_frozen_epochs_leave_the_encoder_unchanged(tiny):
    checkpoint = write_weights(tiny)
    trainer = make_trainer(tiny, "AliceTrainer_2epochs", seed=1, frozen_epochs=1, warmup=0.0)
    seen = []
    end = trainer.on_train_epoch_end
    trainer.on_train_epoch_end = lambda outputs: (seen.append(values(trainer.network)), end(outputs))
    trainer.run_training()
    teacher = checkpoint.section("teacher")
    encoder = [name for name in seen[0] if name.startswith("encoder.")]
    assert all(torch.equal(seen[0][name], teacher[name]) for name in encoder)
    assert not any(torch.equal(seen[0][n], teacher[n]) for n in seen[0] if n.endswith("transpconvs.0.weight"))
    weights = [name for name in encoder if name.endswith("conv.weight")]
    assert not any(torch.equal(seen[1][name], teacher[name]) for name in weights)


# ---- steps -----------------------------------------------------------------------------------------------------------


def test_gradients_equal_those_of_both_losses_computed_separately(tiny):
    trainer, batch = started(tiny, "AliceTrainer_scratch", precision="fp32", aux_weight=0.7, num_positions=100)
    network, aux = copy.deepcopy(trainer.network), copy.deepcopy(trainer.aux)
    network.encoder._forward_hooks.clear()
    generator = torch.Generator()
    generator.set_state(trainer.generator.get_state())
    trainer.optimizer.step = lambda: None
    losses = trainer.train_step(batch)

    views = split_views(batch["data"], 1)
    segmentation = trainer.loss(network(views.first), batch["target"])
    stage = 2  # 8^3 positions, the deepest of three
    first, second = (network.encoder(view)[stage] for view in (views.first, views.second))
    index, counts = sample_positions(views.valid_mask, (8, 8, 8), 100, generator)
    rows = [aux["projection_2"](gather_positions(m, index)) for m in (first, second)]
    info_nce = PatchInfoNCE(0.2)(*rows, counts)
    (segmentation + 0.7 * info_nce).backward()
    expected = [*network.parameters(), *aux.parameters()]
    torch.nn.utils.clip_grad_norm_(expected, 12)
    for p, q in zip([*trainer.network.parameters(), *trainer.aux.parameters()], expected, strict=True):
        assert (p.grad is None) == (q.grad is None)  # the coarsest output has the weight 0
        assert q.grad is None or torch.allclose(p.grad, q.grad, atol=1e-5)
    assert losses["loss"] == pytest.approx(segmentation.item(), rel=1e-4)
    assert losses["info_nce"] == pytest.approx(info_nce.item(), rel=1e-4)
    assert losses["total"] == pytest.approx(segmentation.item() + 0.7 * info_nce.item(), rel=1e-4)


def test_the_auxiliary_loss_alone_reaches_every_tensor_of_the_encoder(tiny):
    trainer, batch = started(tiny, "AliceTrainer_scratch")
    trainer.loss = lambda outputs, target: sum(o.sum() for o in outputs) * 0
    trainer.optimizer.step = lambda: None
    trainer.train_step(batch)
    weights = [p for p in trainer.network.encoder.parameters() if p.ndim > 1]
    assert all(p.grad.abs().sum() > 0 for p in [*weights, *trainer.aux.parameters()])
    assert all((p.grad == 0).all() for p in trainer.optimizer.param_groups[0]["params"])


def test_positions_in_the_padding_are_never_sampled(tiny):
    trainer, batch = started(tiny, "AliceTrainer_scratch")
    content = split_views(batch["data"], 1).valid_mask
    content[..., :16] = 0  # half of the patch
    drawn = []
    trainer.contrast = lambda a, b, counts, labels: drawn.append(counts) or (a.sum() + b.sum()) * 0
    trainer.train_step(batch)
    assert drawn[0].shape == (2, 256)
    assert (drawn[0].sum(1) <= 8 * 8 * 4).all()


def test_without_auxiliary_losses_scratch_equals_the_baseline(tiny):
    options = {"seed": 3, "aux": False, "warmup": 0.5, "head": "stock", "mirroring": "all"}
    twins = [make_trainer(tiny, name, **options) for name in ("AliceTrainer_scratch_1epoch", "BaselineTrainer_1epoch")]
    for trainer in twins:
        trainer.run_training()
    assert_same(*(values(trainer.network) for trainer in twins))
    assert not twins[0].aux
    assert twins[0].feature_hook is None
    assert twins[0].logger.get_value("train_losses", None) == twins[1].logger.get_value("train_losses", None)
    assert next(twins[0].dataloader_train)["data"].shape[1] == 1


def test_compiled_steps_equal_eager_steps(tiny, monkeypatch):
    """nnU-Net compiles on CUDA only; this test uses the same tracing without code generation."""
    plain, batch = started(tiny, "AliceTrainer_scratch")
    for _ in range(2):
        expected = plain.train_step(copy.deepcopy(batch))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
        patch.setattr(type(plain), "_do_i_compile", lambda self: True)
        compiled, _ = started(tiny, "AliceTrainer_scratch")
    assert isinstance(compiled.network, torch._dynamo.OptimizedModule)
    for _ in range(2):
        losses = compiled.train_step(copy.deepcopy(batch))
    assert {name: float(v) for name, v in losses.items()} == pytest.approx(
        {name: float(v) for name, v in expected.items()}, rel=1e-4
    )
    compiled.save_checkpoint(str(Path(compiled.output_folder, "checkpoint_latest.pth")))
    assert_same([*values(compiled.plain_network)], [*values(plain.network)])  # names without a prefix
    torch._dynamo.reset()


def test_out_of_memory_halves_the_second_view(tiny):
    trainer, batch = started(tiny, "AliceTrainer_scratch")
    forward, sizes = trainer.second_pass, []

    def short_of_memory(x):
        """Behave like CUDA if a pass on more than one sample does not fit."""
        sizes.append(len(x))
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(x)

    trainer.second_pass = short_of_memory
    before = values(trainer.network.encoder)
    losses = trainer.train_step(batch)
    trainer.train_step(batch)
    assert sizes == [2, 1, 1]
    assert np.isfinite(losses["info_nce"])
    assert losses["info_nce"] < math.log(2 * 256) * 2  # one sample: 512 rows
    after = values(trainer.network.encoder)
    assert not any(torch.equal(before[name], after[name]) for name in before if name.endswith("conv.weight"))
    assert log_of(trainer).count("the second view is made for 1 of 2 samples") == 1


def test_out_of_memory_with_one_sample_stops_with_a_remedy(tiny):
    trainer, batch = started(tiny, "AliceTrainer_scratch")

    def no_memory(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.second_pass = no_memory
    with pytest.raises(DeviceMemoryError, match=r"ran out of memory.*Remedy"):
        trainer.train_step(batch)
    assert 'Remedy: "aux": false' in log_of(trainer)


@pytest.mark.parametrize("aux", [True, False])
def test_five_steps_with_non_finite_losses_stop_the_run(tiny, aux):
    trainer, good = started(tiny, "AliceTrainer_scratch", aux=aux)
    bad = {**good, "data": torch.full_like(good["data"], math.nan), "keys": ["case_broken", "case_003"]}
    for _ in range(4):
        trainer.train_step(bad)
    trainer.train_step(good)
    for _ in range(4):
        losses = trainer.train_step(bad)
    assert "cases case_broken, case_003; 4 in a row" in log_of(trainer)
    assert trainer.guard.in_epoch == 8
    with pytest.raises(NonFiniteLossError, match=r"5 steps in a row.*case_003, case_broken"):
        trainer.train_step(bad)
    assert np.isnan(losses["loss"])


def test_a_step_with_a_non_finite_loss_changes_nothing_and_is_left_out_of_the_mean(tiny):
    trainer, good = started(tiny, "AliceTrainer_scratch")
    first = trainer.train_step(good)
    before, momentum = values(trainer.network), copy.deepcopy(trainer.optimizer.state_dict()["state"])
    second = trainer.train_step({**good, "data": torch.full_like(good["data"], math.inf)})
    assert_same(values(trainer.network), before)
    assert_same(trainer.optimizer.state_dict()["state"], momentum)
    trainer.on_train_epoch_end([first, second])
    assert trainer.logger.get_value("train_losses", -1) == first["loss"]
    assert trainer.logger.get_value("non_finite_steps", -1) == 1


# ---- seeds -----------------------------------------------------------------------------------------------------------


def test_a_seed_makes_a_run_reproducible_for_any_number_of_workers(tiny, monkeypatch):
    runs = []
    for workers in (0, 0, 2):
        monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
        trainer = make_trainer(tiny, "AliceTrainer_scratch_2epochs", seed=1)
        trainer.run_training()
        runs.append({**values(trainer.network), **values(trainer.aux)})
    for run in runs[1:]:
        assert_same(run, runs[0])


def test_another_seed_gives_another_run(tiny):
    first, second = (started(tiny, "AliceTrainer_scratch", seed=seed) for seed in (1, 2))
    pair = values(first[0].network), values(second[0].network)
    assert not any(torch.equal(pair[0][name], pair[1][name]) for name in pair[0] if name.endswith("conv.weight"))
    assert not torch.equal(first[1]["data"], second[1]["data"])
    assert first[0].generator.initial_seed() != second[0].generator.initial_seed()


def test_without_a_seed_nothing_is_seeded(tiny):
    loaders = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        trainer = make_trainer(tiny, "BaselineTrainer")
        trainer.on_train_start()
        loaders.append(type(trainer.dataloader_train.data_loader).__name__)
    assert loaders == ["nnUNetDataLoader"] * 2
