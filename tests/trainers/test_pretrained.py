"""Weights, checkpoints, names and options of trainers, on AliceTrainer and BaselineTrainer."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_invariance.common.builtin_types import to_builtin
from nnunet_invariance.errors import (
    OptionError,
    UnknownConfigurationError,
    UnsupportedConfigurationError,
    WeightsIncompatibleError,
    WeightsNotFoundError,
)
from nnunet_invariance.trainers.configuration import encoder_of
from nnunet_invariance.weights.locate import ENVIRONMENT_VARIABLE
from tests.helpers.pictures import draw_curves
from tests.helpers.tiny_trainers import assert_same, log_of, make_trainer, started, values, write_weights

pytestmark = pytest.mark.usefixtures("results")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """AliceTrainer after two epochs from weights, and the checkpoint it started from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(tmp_path_factory.mktemp("trained")))
        checkpoint = write_weights(tiny)
        draw_curves(patch)
        trainer = make_trainer(tiny, "AliceTrainer_2epochs", seed=1)
        trainer.run_training()
    return trainer, checkpoint


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", ["teacher", "student", None])
def test_the_pretrained_encoder_is_loaded_exactly(tiny, branch):
    checkpoint = write_weights(tiny)
    trainer, _ = started(tiny, "AliceTrainer", branch=branch, transfer="encoder", head="stock")
    section = checkpoint.section("network" if branch == "student" else "teacher")
    encoder = values(trainer.network.encoder)
    assert len(encoder) > 10
    assert_same(encoder, {name: section[f"encoder.{name}"] for name in encoder})
    scratch, _ = started(tiny, "AliceTrainer_scratch", head="stock")
    different = [n for n, v in values(scratch.network.encoder).items() if not torch.equal(v, encoder[n])]
    assert len(different) == len(encoder)
    rest = {name: v for name, v in values(trainer.network.decoder).items() if not name.startswith("encoder.")}
    assert_same(rest, {name: v for name, v in values(scratch.network.decoder).items() if name in rest})
    report = json.loads(Path(trainer.output_folder, "transfer_report.json").read_text())
    assert report["coverage"] == 1
    assert report["location"] == "finished pre-training"
    assert report["sha256"] == checkpoint.metadata["sha256"]
    assert "Transfer report" in log_of(trainer)
    assert str(checkpoint.path) in log_of(trainer)


def test_without_weights_the_run_stops(tiny):
    trainer = make_trainer(tiny, "AliceTrainer")
    with pytest.raises(WeightsNotFoundError, match=r"(?s)Locations searched.*nnunet-invariance pretrain alice"):
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


def test_scratch_searches_no_location(tiny, monkeypatch, tmp_path):
    write_weights(tiny)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "missing"))
    options = {"checkpoint": "/missing/too", "encoder_lr_factor": 0.1, "frozen_epochs": 5}
    trainer, _ = started(tiny, "AliceTrainer_scratch", head="stock", **options)
    baseline = make_trainer(tiny, "BaselineTrainer", seed=1)
    baseline.initialize()
    assert_same(values(trainer.network), values(baseline.network))
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.01] * 3
    assert trainer.transfer_report == {"location": "none: scratch"}
    assert "no weights are searched for" in log_of(trainer)


@pytest.fixture
def foreign_weights(tiny):
    """A checkpoint for `-pretrained_weights`."""
    donor = make_trainer(tiny, "BaselineTrainer", seed=7)
    donor.initialize()
    path = Path(donor.output_folder, "checkpoint_final.pth")
    donor.save_checkpoint(str(path))
    return donor, path


def test_the_weights_of_the_command_are_kept_with_a_warning(tiny, foreign_weights):
    donor, path = foreign_weights
    write_weights(tiny)
    trainer = make_trainer(tiny, "AliceTrainer", seed=1)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(path))  # as `nnUNetv2_train -pretrained_weights` does
    trainer.on_train_start()
    assert_same(values(trainer.network.encoder), values(donor.network.encoder))
    assert trainer.transfer_report == {"location": "-pretrained_weights"}
    assert "WARNING: the weights of -pretrained_weights" in log_of(trainer)


def test_scratch_refuses_pretrained_weights(tiny, foreign_weights):
    trainer = make_trainer(tiny, "AliceTrainer_scratch")
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(foreign_weights[1]))
    with pytest.raises(WeightsIncompatibleError, match=r"AliceTrainer_scratch.*Remove -pretrained_weights"):
        trainer.on_train_start()


# ---- what a run leaves -----------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_no_code_and_loads_into_the_stock_network(trained):
    trainer, source = trained
    checkpoint = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=True)
    network = nnUNetTrainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, enable_deep_supervision=False
    )
    planned = {n: value for n, value in checkpoint["network_weights"].items() if not n.startswith("head.")}
    network.load_state_dict(planned, strict=True)
    trained_values = values(trainer.network)
    assert_same(values(network), {n: value for n, value in trained_values.items() if not n.startswith("head.")})
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
    assert block["aux_state"].keys() == {f"projection_2.{n}" for n, _ in trainer.aux["projection_2"].named_parameters()}


def test_every_curve_has_one_value_per_epoch(trained):
    trainer, _ = trained
    curves = trainer.logger.get_checkpoint()
    assert {len(curve) for curve in curves.values()} == {2}
    for name in ("train_info_nce", "train_total", "aux_weight", "encoder_lr", "non_finite_steps"):
        assert np.isfinite(curves[name]).all()
    total = np.array(curves["train_losses"]) + 0.1 * np.array(curves["train_info_nce"])
    assert curves["train_total"][1] == pytest.approx(total[1], rel=1e-5)
    for name in ("progress.png", "invariance.png"):
        assert matplotlib.image.imread(Path(trainer.output_folder, name)).std() > 0
    assert trainer.feature_hook._skips is None


def test_the_latest_checkpoint_is_written_after_every_epoch_except_the_last(tiny):
    trainer = make_trainer(tiny, "BaselineTrainer_2epochs", iterations_per_epoch=1)
    seen = []
    write = trainer.save_checkpoint
    trainer.save_checkpoint = lambda name: (seen.append(Path(name).stem), write(name))
    trainer.run_training()
    assert [name for name in seen if name != "checkpoint_best"] == ["checkpoint_latest", "checkpoint_final"]
    assert torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=True)["current_epoch"] == 2


def test_no_checkpoint_is_written_if_checkpointing_is_disabled(tiny):
    trainer = make_trainer(tiny, "BaselineTrainer")
    trainer.initialize()
    trainer.disable_checkpointing = True
    trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    assert not list(Path(trainer.output_folder).glob("*.pth"))


def test_checkpoint_content_is_converted_to_built_in_types():
    value = {"a": [np.float64(1.5), np.float32(0.5), (np.int64(3), np.arange(2))], "b": torch.device("cpu"), 1: None}
    plain = to_builtin(value)
    assert plain == {"a": [1.5, 0.5, (3, [0, 1])], "b": "cpu", 1: None}
    assert type(plain["a"][0]) is float
    with pytest.raises(TypeError, match=r"built-in types only.*object"):
        to_builtin({"a": [object()]})


# ---- names, configurations, options ----------------------------------------------------------------------------------


def test_length_and_scratch_come_from_the_name(tiny):
    trainer = make_trainer(tiny, "AliceTrainer_scratch_5epochs")
    assert (trainer.num_epochs, trainer.scratch) == (5, True)
    assert make_trainer(tiny, "AliceTrainer").num_epochs == 1000
    assert make_trainer(tiny, "BaselineTrainer_1epoch").num_epochs == 1


def test_iterations_come_from_the_options(tiny):
    trainer = make_trainer(tiny, "BaselineTrainer", iterations_per_epoch=7, val_iterations_per_epoch=3)
    assert (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (7, 3)
    trainer = make_trainer(tiny, "BaselineTrainer", iterations_per_epoch=None, val_iterations_per_epoch=None)
    assert (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (250, 50)


def test_a_network_without_stages_is_refused():
    with pytest.raises(UnsupportedConfigurationError, match=r"AliceTrainer needs .* but the plans name Linear"):
        encoder_of(torch.nn.Linear(1, 1), "AliceTrainer")


@pytest.mark.parametrize("name", ["AliceTrainer", "BaselineTrainer"])
def test_unknown_configurations_or_options_are_refused_before_files_are_written(tiny, results, name):
    with pytest.raises(UnknownConfigurationError, match=r"no configuration '3d'; they hold .*3d_fullres"):
        make_trainer(tiny, name, configuration="3d")
    with pytest.raises(OptionError, match=r"seeed.*'seed'"):
        make_trainer(tiny, name, seeed=1)
    assert not results.exists()
