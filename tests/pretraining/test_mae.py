"""`pretrain mae` and MAETrainer, in the same loop and with the same base class as the other methods."""

import json

import pytest
import torch

from nnunet_invariance.errors import WeightsNotFoundError
from nnunet_invariance.weights.checkpoint import load_checkpoint
from tests.helpers.pretraining_runs import run_pretraining
from tests.helpers.tiny_trainers import make_trainer, values


def test_pretrained_weights_are_in_the_trainer(tiny, results):
    settings = ["epochs=2", "iterations=6", "lr=3e-3", "workers=0"]
    path = run_pretraining("mae", tiny.name, "3d_fullres", device="cpu", settings=settings)
    checkpoint = load_checkpoint(path)
    assert {name.split(".")[0] for name in checkpoint.tensors} == {"network"}
    assert checkpoint.metadata["method"] == "mae"
    history = checkpoint.metadata["progress"]["history"]
    assert history[1]["mim"] < history[0]["mim"]
    trainer = make_trainer(tiny, "MAETrainer_1epoch", seed=1)
    trainer.on_train_start()
    pretrained = checkpoint.section("network")
    for name, value in values(trainer.plain_network).items():
        if name.startswith("encoder."):
            assert torch.equal(value, pretrained[name]), name
    report = json.loads(
        (results / "MAETrainer_1epoch__nnUNetPlans__3d_fullres/fold_0/transfer_report.json").read_text()
    )
    assert report["coverage"] == 1.0
    assert report["branch"] == "student"


def test_a_run_is_continued(tiny, results):
    settings = ["epochs=1", "iterations=2", "workers=0"]
    first = run_pretraining("mae", tiny.name, "3d_fullres", device="cpu", settings=settings)
    assert run_pretraining("mae", tiny.name, "3d_fullres", device="cpu", settings=settings, resume=True) == first


def test_no_weights_and_no_auxiliary_loss(tiny, results):
    with pytest.raises(WeightsNotFoundError, match="pretrain mae"):
        make_trainer(tiny, "MAETrainer_1epoch").on_train_start()
    make_trainer(tiny, "MAETrainer_scratch_1epoch")  # needs none
