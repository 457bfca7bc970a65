"""AliceTrainer, its scratch twin and BaselineTrainer on the tiny data set."""

import copy
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_dataset import cut_down
from tiny_trainers import assert_same, log_of, make_trainer, values, write_weights

from nnunet_invariance.augmentation.views import split_views
from nnunet_invariance.errors import (
    NonFiniteLossError,
    OptionError,
    UnknownConfigurationError,
    UnsupportedConfigurationError,
    WeightsIncompatibleError,
    WeightsNotFoundError,
)
from nnunet_invariance.losses.info_nce import PatchInfoNCE
from nnunet_invariance.networks.projection import gather_positions, sample_positions
from nnunet_invariance.trainers.configuration import encoder_of
from nnunet_invariance.trainers.schedule import WarmupPolySchedule, ramp
from nnunet_invariance.trainers.state import native
from nnunet_invariance.weights.locate import ENVIRONMENT_VARIABLE


@pytest.fixture(autouse=True)
def results(tiny, tmp_path, monkeypatch):
    """A results tree of its own for each test, and no weights named from outside."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    return tmp_path / tiny.name


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """AliceTrainer after two epochs from weights, and the checkpoint it started from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(tmp_path_factory.mktemp("trained")))
        checkpoint = write_weights(tiny)
        trainer = make_trainer(tiny, "AliceTrainer_2epochs", seed=1)
        trainer.run_training()
    return trainer, checkpoint


def started(tiny, name, **options):
    """A trainer just before its first step, and a batch."""
    trainer = make_trainer(tiny, name, **{"seed": 1, "aux_ramp": 0.0, "warmup": 0.0, **options})
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer, next(trainer.dataloader_train)


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["teacher", "student"])
def test_the_pretrained_encoder_is_in_the_network_bit_by_bit(tiny, source):
    checkpoint = write_weights(tiny)
    trainer, _ = started(tiny, "AliceTrainer", source=source)
    section = checkpoint.section("teacher" if source == "teacher" else "network")
    encoder = values(trainer.network.encoder)
    assert len(encoder) > 10
    assert_same(encoder, {name: section[f"encoder.{name}"] for name in encoder})
    scratch, _ = started(tiny, "AliceTrainer_scratch")
    different = [n for n, v in values(scratch.network.encoder).items() if not torch.equal(v, encoder[n])]
    assert len(different) == len(encoder)
    rest = {name: v for name, v in values(trainer.network.decoder).items() if not name.startswith("encoder.")}
    assert_same(rest, {name: v for name, v in values(scratch.network.decoder).items() if name in rest})
    report = json.loads(Path(trainer.output_folder, "transfer_report.json").read_text())
    assert report["coverage"] == 1
    assert report["place"] == "finished pre-training"
    assert report["sha256"] == checkpoint.metadata["sha256"]
    assert "Transfer report" in log_of(trainer)
    assert str(checkpoint.path) in log_of(trainer)


def test_without_weights_the_run_stops(tiny):
    trainer = make_trainer(tiny, "AliceTrainer")
    with pytest.raises(WeightsNotFoundError, match=r"(?s)four|Looked at.*nnunet-invariance pretrain alice"):
        trainer.run_training()
    assert not list(Path(trainer.output_folder).glob("*.pth"))


def test_weights_of_another_method_are_refused(tiny):
    write_weights(tiny, method="anatomix")
    trainer = make_trainer(tiny, "AliceTrainer", seed=1)
    trainer.initialize()
    before = values(trainer.network)
    with pytest.raises(WeightsIncompatibleError, match=r"'anatomix'.*'alice'"):
        trainer.on_train_start()
    assert_same(values(trainer.network), before)


def test_scratch_looks_at_none_of_the_places(tiny, monkeypatch, tmp_path):
    write_weights(tiny)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "missing"))
    options = {"checkpoint": "/missing/too", "encoder_lr_factor": 0.1, "frozen_epochs": 5}
    trainer, _ = started(tiny, "AliceTrainer_scratch", **options)
    baseline = make_trainer(tiny, "BaselineTrainer", seed=1)
    baseline.initialize()
    assert_same(values(trainer.network), values(baseline.network))
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.01] * 3
    assert trainer.transfer_report == {"place": "none: scratch"}
    assert "no place is searched" in log_of(trainer)


@pytest.fixture
def foreign_weights(tiny):
    """A checkpoint for `-pretrained_weights`."""
    donor = make_trainer(tiny, "BaselineTrainer", seed=7)
    donor.initialize()
    path = Path(donor.output_folder, "checkpoint_final.pth")
    donor.save_checkpoint(str(path))
    return donor, path


def test_pretrained_weights_of_the_command_win_and_say_so(tiny, foreign_weights):
    donor, path = foreign_weights
    write_weights(tiny)
    trainer = make_trainer(tiny, "AliceTrainer", seed=1)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(path))  # as `nnUNetv2_train -pretrained_weights` does
    trainer.on_train_start()
    assert_same(values(trainer.network.encoder), values(donor.network.encoder))
    assert trainer.transfer_report == {"place": "-pretrained_weights"}
    assert "WARNING: -pretrained_weights" in log_of(trainer)


def test_scratch_refuses_pretrained_weights(tiny, foreign_weights):
    trainer = make_trainer(tiny, "AliceTrainer_scratch")
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(foreign_weights[1]))
    with pytest.raises(WeightsIncompatibleError, match=r"AliceTrainer_scratch.*Leave -pretrained_weights away"):
        trainer.on_train_start()


# ---- what a run leaves -----------------------------------------------------------------------------------------------


def test_checkpoint_opens_without_code_and_loads_strictly_into_the_stock_network(trained):
    trainer, source = trained
    checkpoint = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=True)
    network = nnUNetTrainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, enable_deep_supervision=False
    )
    network.load_state_dict(checkpoint["network_weights"], strict=True)
    assert_same(values(network), values(trainer.network))
    assert checkpoint["trainer_name"] == "AliceTrainer_2epochs"
    assert checkpoint["current_epoch"] == 2
    assert checkpoint["init_args"]["configuration"] == "3d_fullres"
    assert checkpoint["init_args"]["device"] == "cpu"
    block = checkpoint["nnunet_invariance"]
    assert block["format"] == 1
    assert block["method"] == "alice"
    assert block["options"] == trainer.options.to_dict()
    assert block["transfer_report"]["sha256"] == source.metadata["sha256"]
    assert_same(block["aux_state"], dict(trainer.aux.state_dict()))
    assert block["aux_state"].keys() == {f"projection.{n}" for n, _ in trainer.aux["projection"].named_parameters()}


def test_every_curve_has_one_value_an_epoch(trained):
    trainer, _ = trained
    curves = trainer.logger.get_checkpoint()
    assert {len(curve) for curve in curves.values()} == {2}
    for name in ("train_info_nce", "train_total", "aux_weight", "encoder_lr", "non_finite_steps"):
        assert np.isfinite(curves[name]).all()
    total = np.array(curves["train_losses"]) + 0.1 * np.array(curves["train_info_nce"])
    assert curves["train_total"][1] == pytest.approx(total[1], rel=1e-5)
    for name in ("progress.png", "invariance.png"):
        assert Path(trainer.output_folder, name).read_bytes().startswith(b"\x89PNG")
    assert trainer.tap._skips is None


def test_latest_checkpoint_is_written_after_every_epoch_but_the_last(tiny):
    trainer = make_trainer(tiny, "BaselineTrainer_2epochs", iterations_per_epoch=1)
    seen = []
    write = trainer.save_checkpoint
    trainer.save_checkpoint = lambda name: (seen.append(Path(name).stem), write(name))
    trainer.run_training()
    assert [name for name in seen if name != "checkpoint_best"] == ["checkpoint_latest", "checkpoint_final"]
    assert torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=True)["current_epoch"] == 2


def test_no_checkpoint_where_checkpointing_is_disabled(tiny):
    trainer = make_trainer(tiny, "BaselineTrainer")
    trainer.initialize()
    trainer.disable_checkpointing = True
    trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    assert not list(Path(trainer.output_folder).glob("*.pth"))


def test_native_types():
    value = {"a": [np.float64(1.5), np.float32(0.5), (np.int64(3), np.arange(2))], "b": torch.device("cpu"), 1: None}
    plain = native(value)
    assert plain == {"a": [1.5, 0.5, (3, [0, 1])], "b": "cpu", 1: None}
    assert type(plain["a"][0]) is float
    with pytest.raises(TypeError, match=r"native types only.*object"):
        native({"a": [object()]})


# ---- names, configurations, options ----------------------------------------------------------------------------------


def test_names_say_length_and_scratch(tiny):
    trainer = make_trainer(tiny, "AliceTrainer_scratch_5epochs")
    assert (trainer.num_epochs, trainer.scratch) == (5, True)
    assert make_trainer(tiny, "AliceTrainer").num_epochs == 1000
    assert make_trainer(tiny, "BaselineTrainer_1epoch").num_epochs == 1


def test_options_say_iterations(tiny):
    trainer = make_trainer(tiny, "BaselineTrainer", iterations_per_epoch=7, val_iterations_per_epoch=3)
    assert (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (7, 3)
    trainer = make_trainer(tiny, "BaselineTrainer", iterations_per_epoch=None, val_iterations_per_epoch=None)
    assert (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (250, 50)


def test_alice_takes_no_2d_configuration(tiny, results):
    with pytest.raises(UnsupportedConfigurationError, match=r"AliceTrainer supports 3d .*but 2d of nnUNetPlans is 2d"):
        make_trainer(tiny, "AliceTrainer", configuration="2d")
    assert not results.exists()
    make_trainer(tiny, "BaselineTrainer", configuration="2d")


def test_alice_takes_no_cascade(tiny, results):
    plans = cut_down(tiny.plans, "nnUNetPlans")
    plans["configurations"]["second"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres"}
    with pytest.raises(UnsupportedConfigurationError, match="second of nnUNetPlans is the second stage of a cascade"):
        make_trainer(tiny, "AliceTrainer", plans, "second")
    assert not results.exists()


def test_a_network_without_stages_is_refused():
    with pytest.raises(UnsupportedConfigurationError, match=r"AliceTrainer needs .* but the plans name Linear"):
        encoder_of(torch.nn.Linear(1, 1), "AliceTrainer")


@pytest.mark.parametrize("name", ["AliceTrainer", "BaselineTrainer"])
def test_unknown_configuration_or_option_stops_before_anything_is_written(tiny, results, name):
    with pytest.raises(UnknownConfigurationError, match=r"no configuration '3d'; they hold .*3d_fullres"):
        make_trainer(tiny, name, configuration="3d")
    with pytest.raises(OptionError, match=r"seeed.*'seed'"):
        make_trainer(tiny, name, seeed=1)
    assert not results.exists()


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


def test_schedule_without_warmup_is_nnunets():
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


def test_rates_of_the_groups(tiny):
    write_weights(tiny)
    trainer, _ = started(tiny, "AliceTrainer", encoder_lr_factor=0.2)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([0.01, 0.002, 0.01])
    modules = (trainer.network.decoder, trainer.network.encoder, trainer.aux)
    names = [{id(p) for p in module.parameters()} for module in modules]
    groups = [{id(p) for p in group["params"]} for group in trainer.optimizer.param_groups]
    assert groups == [names[0] - names[1], names[1], names[2]]  # nnU-Net's decoder holds the encoder


def test_frozen_epochs_leave_the_encoder_bit_by_bit(tiny):
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


def test_gradients_are_those_of_both_losses_written_out(tiny):
    trainer, batch = started(tiny, "AliceTrainer_scratch", aux_weight=0.7, positions=100)
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
    index, counts = sample_positions(views.content, (8, 8, 8), 100, generator)
    rows = [aux["projection"](gather_positions(m, index)) for m in (first, second)]
    info_nce = PatchInfoNCE(0.2)(*rows, counts)
    (segmentation + 0.7 * info_nce).backward()
    expected = [*network.parameters(), *aux.parameters()]
    torch.nn.utils.clip_grad_norm_(expected, 12)
    for p, q in zip([*trainer.network.parameters(), *trainer.aux.parameters()], expected, strict=True):
        assert (p.grad is None) == (q.grad is None)  # nnU-Net gives the coarsest output no weight
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


def test_padded_voxels_are_never_drawn(tiny):
    trainer, batch = started(tiny, "AliceTrainer_scratch")
    content = split_views(batch["data"], 1).content
    content[..., :16] = 0  # half of the patch
    drawn = []
    trainer.contrast = lambda a, b, counts: drawn.append(counts) or (a.sum() + b.sum()) * 0
    trainer.train_step(batch)
    assert drawn[0].shape == (2, 256)
    assert (drawn[0].sum(1) <= 8 * 8 * 4).all()


def test_without_an_auxiliary_loss_scratch_is_the_baseline_bit_by_bit(tiny):
    options = {"seed": 3, "aux": "none", "warmup": 0.5}
    twins = [
        make_trainer(tiny, name, **options) for name in ("AliceTrainer_scratch_2epochs", "BaselineTrainer_2epochs")
    ]
    for trainer in twins:
        trainer.run_training()
    assert_same(*(values(trainer.network) for trainer in twins))
    assert not twins[0].aux
    assert twins[0].tap is None
    assert twins[0].logger.get_value("train_losses", None) == twins[1].logger.get_value("train_losses", None)
    assert next(twins[0].dataloader_train)["data"].shape[1] == 1


def test_compiled_steps_equal_plain_ones(tiny, monkeypatch):
    """nnU-Net compiles on CUDA only; here with the same tracing, but without a code generator."""
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


def test_short_memory_makes_the_second_view_smaller(tiny):
    trainer, batch = started(tiny, "AliceTrainer_scratch")
    forward, sizes = trainer.second_pass, []

    def short_of_memory(x):
        """What CUDA does where a pass on more than one sample does not fit."""
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


def test_no_memory_for_one_sample_stops_with_a_remedy(tiny):
    trainer, batch = started(tiny, "AliceTrainer_scratch")

    def no_memory(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.second_pass = no_memory
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train_step(batch)
    assert 'Remedy: "aux": "none"' in log_of(trainer)


@pytest.mark.parametrize("aux", ["info_nce", "none"])
def test_five_steps_that_are_not_finite_stop_the_run(tiny, aux):
    trainer, good = started(tiny, "AliceTrainer_scratch", aux=aux)
    bad = {**good, "data": torch.full_like(good["data"], math.nan), "keys": ["case_broken", "case_003"]}
    if aux == "none":
        trainer.optimizer.step = lambda: None  # nnU-Net's own step would make the weights NaN
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


def test_a_step_that_is_not_finite_changes_nothing_and_leaves_the_mean_finite(tiny):
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


def test_a_seed_repeats_a_run_bit_by_bit_whatever_the_workers(tiny, monkeypatch):
    runs = []
    for workers in (0, 0, 2):
        monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
        trainer = make_trainer(tiny, "AliceTrainer_scratch_2epochs", seed=1)
        trainer.run_training()
        runs.append({**values(trainer.network), **values(trainer.aux)})
    for run in runs[1:]:
        assert_same(run, runs[0])


def test_another_seed_is_another_run(tiny):
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
