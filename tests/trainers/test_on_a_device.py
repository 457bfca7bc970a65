"""One step of every trainer on an emulated device: no tensor on the wrong side, and few waits of the host."""

import pytest
import torch

from nnunet_invariance.common import precision
from nnunet_invariance.registry import trainers
from tests.helpers.device_emulator import DEVICE, Emulator
from tests.helpers.tiny_trainers import make_trainer, started

#: Reads of a step: the losses, and whether they and the gradients are finite.
MOST_WAITS = 2
#: Waits in addition, for sizes that depend on values.
ADDITIONAL = {"PUIRTrainer": 1}  # whether a sample lacks a modality, which saves a pass of the decoder
OPTIONS = {"aux_ramp": 0.0, "num_positions": 32, "prior": 4, "equivariance_probability": 1.0}


@pytest.mark.parametrize("entry", [pytest.param(entry, id=name) for name, entry in trainers().items()])
@pytest.mark.usefixtures("results")
def test_a_step_runs_on_the_device(entry, request, monkeypatch):
    monkeypatch.setenv("nnUNet_compile", "f")
    monkeypatch.setitem(precision.SUPPORTED, DEVICE.type, ("fp32", "bf16", "fp16"))
    dataset = request.getfixturevalue("modalities" if entry.load().least_channels > 1 else "tiny")
    with Emulator() as emulator:
        name = f"{entry.name}{'_scratch' if entry.has_scratch_twin else ''}"
        trainer, batch = started(dataset, name, device=DEVICE, precision="bf16", **OPTIONS)
        emulator.waits.clear()
        losses = trainer.train_step(batch)
    assert not trainer.guard.skipped
    assert all(value == value for value in losses.values())
    assert emulator.total <= MOST_WAITS + ADDITIONAL.get(entry.name, 0), emulator.waits


@pytest.mark.usefixtures("results")
def test_a_loss_scale_and_the_augmentation_on_the_device_add_no_wait(tiny, monkeypatch):
    """In bfloat16, because a CPU needs long for float16."""
    monkeypatch.setenv("nnUNet_compile", "f")
    monkeypatch.setitem(precision.SUPPORTED, DEVICE.type, ("bf16",))
    monkeypatch.setattr(precision.Precision, "make_scaler", lambda self: torch.amp.GradScaler(self.device.type))
    with Emulator() as emulator:
        trainer, batch = started(tiny, "BaselineTrainer", device=DEVICE, precision="bf16", augmentation="device")
        emulator.waits.clear()
        trainer.train_step(batch)
    assert not trainer.guard.skipped
    assert emulator.total <= MOST_WAITS, emulator.waits


@pytest.mark.usefixtures("results")
def test_a_step_with_unlabelled_scans_runs_on_the_device(tiny, monkeypatch):
    """nnU-Net's loss with an ignore label waits once per resolution, because it counts the voxels."""
    monkeypatch.setenv("nnUNet_compile", "f")
    monkeypatch.setitem(precision.SUPPORTED, DEVICE.type, ("fp32", "bf16", "fp16"))
    unlabelled = {"cases": "rest", "ramp": 0.0, "confidence": 0.0}
    with Emulator() as emulator:
        trainer = make_trainer(tiny, "BaselineTrainer", device=DEVICE, precision="bf16", seed=1, unlabelled=unlabelled)
        trainer.do_split = lambda: (["case_000"], ["case_001"])
        trainer.on_train_start()
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        trainer.unlabelled.trust.given = True
        batch = next(trainer.dataloader_train)
        emulator.waits.clear()
        trainer.train_step(batch)
    assert len(trainer.unlabelled.losses) == 1
    assert not trainer.guard.skipped
    assert emulator.total <= MOST_WAITS + len(trainer.unlabelled.loss.weights), emulator.waits
