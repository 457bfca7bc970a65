"""Trainers whose device augments: what the loader gives, steps of every kind of trainer, refusals."""

import copy
import math

import pytest
import torch

from nnunet_invariance.errors import UnsupportedConfigurationError
from tests.helpers.tiny_dataset import cut_down, cut_down_2d
from tests.helpers.tiny_trainers import make_trainer, started, values

pytestmark = pytest.mark.usefixtures("results")
DEVICE = {"augmentation": "device"}


@pytest.mark.parametrize(
    ("name", "options", "channels"),
    [
        ("BaselineTrainer", {}, 1),
        ("AliceTrainer_scratch", {}, 4),
        ("AliceTrainer_scratch", {"aux": False}, 1),
        ("AnatomixTrainer_scratch", {"second_view": "synthetic"}, 4),
        ("ICMSegTrainer_scratch", {"style": "gin", "aux_weight": 0.1, "contrast": "same_position"}, 4),
    ],
)
def test_a_step_trains_on_a_patch_that_the_device_augments(tiny, name, options, channels):
    trainer, batch = started(tiny, name, num_positions=16, **DEVICE, **options)
    assert batch["data"].shape == (2, 1, 51, 51, 51)  # nnU-Net's enlarged patch
    assert batch["target"].min() == -1  # labels as they are stored
    augmented = trainer.augmented(batch)
    assert augmented["data"].shape == (2, channels, 32, 32, 32)
    assert [len(part.shape) for part in augmented["target"]] == [5, 5]
    assert min(part.min() for part in augmented["target"]) == 0
    before = values(trainer.network)
    losses = trainer.train_step(batch)
    assert all(math.isfinite(loss) for loss in losses.values())
    after = values(trainer.network)
    assert not any(torch.equal(before[name], after[name]) for name in before if name.endswith("conv.weight"))
    assert next(trainer.dataloader_val)["data"].shape == (2, 1, 32, 32, 32)


OPTIONS = {"iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "seed": 1, **DEVICE}


def test_2d_plans_train(tiny):
    plans = cut_down_2d(tiny.plans, "nnUNetPlans", **OPTIONS)
    trainer, batch = started(tiny, "BaselineTrainer", plans, "2d")
    augmented = trainer.augmented(batch)
    assert batch["data"].shape[2:] > augmented["data"].shape[2:] == (32, 32)
    assert [part.shape for part in augmented["target"]] == [(2, 1, 32, 32), (2, 1, 16, 16)]
    assert math.isfinite(trainer.train_step(batch)["loss"])


def test_slices_are_turned_in_plane_if_nnunet_does_so(tiny):
    plans = cut_down(tiny.plans, "nnUNetPlans", **OPTIONS)
    plans["configurations"]["3d_fullres"]["patch_size"] = [8, 32, 32]
    trainer, batch = started(tiny, "BaselineTrainer", plans)
    assert batch["data"].shape == (2, 1, 8, 37, 37)
    assert trainer.device_augmentation.geometry.in_plane
    assert trainer.augmented(batch)["data"].shape == (2, 1, 8, 32, 32)
    assert math.isfinite(trainer.train_step(batch)["loss"])


@pytest.mark.parametrize("name", ["ChannelDropoutTrainer", "PUIRTrainer_scratch"])
def test_missing_modalities_stay_empty_on_the_device(modalities, name):
    trainer, batch = started(modalities, name, prior=4, **DEVICE)
    batch["data"][0, 1] = 0
    data = trainer.augmented(batch)["data"]
    assert not data[0, 1].any()
    assert data[0, 0].any()
    assert all(math.isfinite(loss) for loss in trainer.train_step(batch).values())


def test_cascades_and_other_pipelines_are_refused(tiny, results):
    plans = copy.deepcopy(tiny.plans)
    block = {"nnunet_invariance": DEVICE}
    plans["configurations"]["second"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres", **block}
    with pytest.raises(UnsupportedConfigurationError, match=r'is the second stage.*"augmentation": "device"'):
        make_trainer(tiny, "BaselineTrainer", plans, "second")
    assert not results.exists()
    with pytest.raises(UnsupportedConfigurationError, match=r'cannot be split.*"augmentation": "nnunet"'):
        make_trainer(tiny, "BaselineTrainerDA5", **DEVICE).on_train_start()
