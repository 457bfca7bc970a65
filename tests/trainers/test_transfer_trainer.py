"""TransferTrainer: it loads any checkpoint that is named, and searches for no other."""

import copy

import pytest
import torch

from nnunet_invariance.errors import WeightsIncompatibleError, WeightsNotFoundError
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.locate import ENVIRONMENT_VARIABLE
from tests.helpers import small_checkpoints
from tests.helpers.tiny_dataset import cut_down
from tests.helpers.tiny_trainers import assert_same, log_of, make_trainer, values, write_weights

pytestmark = pytest.mark.usefixtures("results")


@pytest.mark.parametrize("place", ["environment", "plans"])
def test_weights_of_any_method_are_loaded_from_a_named_file(tiny, tmp_path, monkeypatch, place):
    checkpoint = write_weights(tiny, tmp_path / "foreign.safetensors", method="import:nnssl", teacher=False)
    options = {"checkpoint": str(checkpoint.path)} if place == "plans" else {}
    if place == "environment":
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(checkpoint.path))
    trainer = make_trainer(tiny, "TransferTrainer_1epoch", seed=1, **options)
    trainer.run_training()
    assert trainer.enable_deep_supervision
    assert trainer.transfer_report["coverage"] == 1
    assert trainer.transfer_report["method"] == "import:nnssl"
    assert "Transfer report" in log_of(trainer)


def test_the_named_encoder_is_loaded_exactly(tiny, tmp_path):
    checkpoint = write_weights(tiny, tmp_path / "foreign.safetensors", method="other")
    trainer = make_trainer(tiny, "TransferTrainer", seed=1, checkpoint=str(checkpoint.path))
    trainer.on_train_start()
    encoder = values(trainer.network.encoder)
    section = checkpoint.section("teacher")  # the file has one
    assert_same(encoder, {name: section[f"encoder.{name}"] for name in encoder})


def test_a_run_without_a_named_file_stops_although_a_pretraining_exists(tiny):
    write_weights(tiny)
    trainer = make_trainer(tiny, "TransferTrainer")
    with pytest.raises(WeightsNotFoundError, match=r"(?s)Locations.*weights plan Dataset777_\w+ FILE -c 3d_fullres"):
        trainer.on_train_start()


def test_a_missing_teacher_is_refused(tiny, tmp_path):
    checkpoint = write_weights(tiny, tmp_path / "a.safetensors", teacher=False)
    trainer = make_trainer(tiny, "TransferTrainer", checkpoint=str(checkpoint.path), branch="teacher")
    with pytest.raises(WeightsIncompatibleError, match='"branch": "student"'):
        trainer.on_train_start()


def two_dimensional(plans: dict) -> dict:
    """The tiny plans with a small 2-D network in place of the stock one."""
    plans = copy.deepcopy(cut_down(plans, "nnUNetPlans"))
    small = small_checkpoints.architecture(dimensions=2).to_dict()
    plans["configurations"]["2d"].update(
        patch_size=[32, 32],
        data_identifier="nnUNetPlans_3d_fullres",  # nnU-Net asks this folder for its file format only
        architecture={k: small[k] for k in ("network_class_name", "arch_kwargs", "_kw_requires_import")},
    )
    return plans


def test_weights_of_two_and_three_dimensions_are_not_mixed(tiny, tmp_path, monkeypatch):
    plans = two_dimensional(tiny.plans)
    flat = Architecture.from_plans(plans["configurations"]["2d"]["architecture"], 1, 3)
    path = small_checkpoints.write(tmp_path / "flat.safetensors", flat, method="other")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(path))
    trainer = make_trainer(tiny, "TransferTrainer", plans, "2d")
    trainer.initialize()
    trainer.transfer_report = trainer.load_initial_weights()
    expected = load_checkpoint(path).section("teacher")["encoder.stages.0.0.convs.0.conv.weight"]
    assert torch.equal(trainer.network.encoder.stages[0][0].convs[0].conv.weight, expected)

    volume = make_trainer(tiny, "TransferTrainer")
    with pytest.raises(WeightsIncompatibleError, match=r"2-D PlainConvUNet.*3-D PlainConvUNet"):
        volume.on_train_start()
