"""The option `precision` of the trainers: fp32 is nnU-Net's step, and bf16 gives nearly the same loss and gradient."""

import copy

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_invariance.registry import trainers
from tests.helpers.tiny_trainers import assert_same, started, values


def gradients_of(trainer) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in trainer.network.parameters() if p.grad is not None])


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=0).item()


@pytest.fixture(scope="module")
def baseline(tiny, tmp_path_factory):
    """A trainer in float32 before its first step, and a batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(tmp_path_factory.mktemp("results")))
        yield started(tiny, "BaselineTrainer", precision="fp32")


def step_of(trainer, batch, name: str, step) -> tuple[dict, torch.Tensor, dict]:
    """Losses, gradient and weights of one step of a copy of the trainer; its weights are those of the trainer."""
    weights, optimizer = copy.deepcopy(trainer.network.state_dict()), copy.deepcopy(trainer.optimizer.state_dict())
    trainer.precision = type(trainer.precision).choose(name, trainer.device)
    losses = step(trainer, copy.deepcopy(batch))
    found = losses, gradients_of(trainer), values(trainer.network)
    trainer.network.load_state_dict(weights)
    trainer.optimizer.load_state_dict(optimizer)
    return found


def test_fp32_is_the_step_of_nnunet_bit_by_bit(baseline):
    trainer, batch = baseline
    own = step_of(trainer, batch, "fp32", type(trainer).train_step)
    stock = step_of(trainer, batch, "fp32", nnUNetTrainer.train_step)
    assert_same(own[2], stock[2])
    np.testing.assert_equal(own[0], stock[0])


def test_bf16_agrees_with_fp32(baseline):
    """bfloat16 has 8 significant bits: losses differ by less than 1 %, gradients by a small angle."""
    trainer, batch = baseline
    wide, half = (step_of(trainer, batch, name, type(trainer).train_step) for name in ("fp32", "bf16"))
    assert 0 < abs(half[0]["loss"] - wide[0]["loss"]) < 0.01 * abs(wide[0]["loss"])
    assert cosine(half[1], wide[1]) > 0.99
    assert half[1].norm() / wide[1].norm() == pytest.approx(1, abs=0.03)
    assert {value.dtype for value in half[2].values()} == {torch.float32}


def test_validation_runs_in_the_precision_of_the_training(baseline, monkeypatch):
    trainer, batch = baseline
    seen = []
    hook = trainer.network.register_forward_hook(lambda module, args, output: seen.append(output[0].dtype))
    try:
        for name in ("fp32", "bf16"):
            trainer.precision = type(trainer.precision).choose(name, trainer.device)
            with torch.no_grad():
                trainer.validation_step(copy.deepcopy(batch))
    finally:
        hook.remove()
    assert seen == [torch.float32, torch.bfloat16]


def test_every_trainer_has_the_option():
    for entry in trainers().values():
        assert entry.load().options_class().precision == "auto"
