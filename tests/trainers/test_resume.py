"""Continuing a training with `--c`: exact with weights and workers, and without a file of weights."""

from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_invariance.errors import CheckpointCorruptError, UnsafeCheckpointError, WeightsIncompatibleError
from nnunet_invariance.weights.locate import ENVIRONMENT_VARIABLE
from tests.helpers.tiny_trainers import assert_same, make_trainer, values, write_weights

pytestmark = pytest.mark.usefixtures("results")


class Killed(Exception):
    """Stands for the end of a process between two epochs."""


def train_until(trainer, epoch):
    """Run the epochs before `epoch` and stop there."""

    def stop():
        if trainer.current_epoch == epoch:
            raise Killed
        type(trainer).on_epoch_start(trainer)

    trainer.on_epoch_start = stop
    with pytest.raises(Killed):
        trainer.run_training()
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if hasattr(loader, "_finish"):
            loader._finish()


def state(trainer) -> dict:
    """Content of the final checkpoint without clock times."""
    checkpoint = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=True)
    checkpoint["logging"] = {k: v for k, v in checkpoint["logging"].items() if "timestamps" not in k}
    return checkpoint


@pytest.mark.parametrize("augmentation", ["nnunet", "device"])
def test_a_continued_run_with_weights_and_workers_is_bit_exact(tiny, monkeypatch, tmp_path, augmentation):
    name = "AliceTrainer_2epochs"
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    options = {"augmentation": augmentation, "seed": 1, "aux_ramp": 0.9, "warmup": 1.0, "frozen_epochs": 1}
    weights = write_weights(tiny, tmp_path / "weights.safetensors").path
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(weights))
    straight = make_trainer(tiny, name, **options)
    straight.run_training()

    monkeypatch.setenv("nnUNet_results", str(tmp_path / "second"))
    train_until(make_trainer(tiny, name, **options), 1)
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    weights.unlink()  # a continued run needs no file of weights
    continued = make_trainer(tiny, name, **options)
    maybe_load_checkpoint(continued, continue_training=True, validation_only=False)
    assert continued.current_epoch == 1
    continued.run_training()
    assert_same(state(continued), state(straight))


def test_validation_needs_no_file_of_weights(tiny):
    weights = write_weights(tiny).path
    trained = make_trainer(tiny, "AliceTrainer_1epoch", iterations_per_epoch=1)
    trained.run_training()
    weights.unlink()
    again = make_trainer(tiny, "AliceTrainer_1epoch", iterations_per_epoch=1)
    maybe_load_checkpoint(again, continue_training=False, validation_only=True)
    assert_same(values(again.network), values(trained.network))
    assert_same(values(again.aux), values(trained.aux))
    assert again.transfer_report == trained.transfer_report


@pytest.fixture
def latest(tiny):
    """A checkpoint of AliceTrainer_scratch after one epoch."""
    trainer = make_trainer(tiny, "AliceTrainer_scratch", iterations_per_epoch=1)
    train_until(trainer, 1)
    return Path(trainer.output_folder, "checkpoint_latest.pth")


@pytest.mark.parametrize("options", [{"aux": False}, {"num_positions": 600}])
def test_other_auxiliary_modules_are_refused(tiny, latest, options):
    trainer = make_trainer(tiny, "AliceTrainer_scratch", **options)
    trainer.initialize()
    before = values(trainer.network)
    with pytest.raises(WeightsIncompatibleError, match=r"fold_0 was trained with .*Restore the options"):
        trainer.load_checkpoint(str(latest))
    assert_same(values(trainer.network), before)


def test_a_checkpoint_of_another_trainer_is_refused(tiny, latest):
    trainer = make_trainer(tiny, "BaselineTrainer")
    with pytest.raises(WeightsIncompatibleError, match=r"latest.pth was written by AliceTrainer_scratch, not"):
        trainer.load_checkpoint(str(latest))


def test_a_damaged_checkpoint_is_refused(tiny, latest):
    latest.write_bytes(latest.read_bytes()[:1000])
    with pytest.raises(CheckpointCorruptError, match=r"checkpoint_latest.pth"):
        make_trainer(tiny, "AliceTrainer_scratch").load_checkpoint(str(latest))


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_with_code_is_not_opened(tiny, latest, tmp_path):
    torch.save({"trainer_name": Payload(tmp_path / "executed")}, latest)
    with pytest.raises(UnsafeCheckpointError, match=r"checkpoint_latest.pth was not opened"):
        make_trainer(tiny, "AliceTrainer_scratch").load_checkpoint(str(latest))
    assert not (tmp_path / "executed").exists()
