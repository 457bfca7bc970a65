"""`pretrain dense` and DenseTrainer: matched voxels, learning, and weights in the trainer."""

import json

import pytest
import torch

from nnunet_invariance.networks.hypercolumns import HypercolumnMaps, sample_hypercolumns
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.nnunet.cases import scan_cases
from nnunet_invariance.pretraining.engine.method import Setup
from nnunet_invariance.pretraining.methods import dense
from nnunet_invariance.pretraining.methods.dense import Dense, DenseOptions
from nnunet_invariance.weights.checkpoint import load_checkpoint
from tests.helpers.pretraining_runs import run_pretraining
from tests.helpers.tiny_trainers import make_trainer, values


def make(tiny, **options) -> Dense:
    """The method on the tiny volumes, without the loop."""
    configuration = tiny.plans["configurations"]["3d_fullres"]
    cases, _ = scan_cases(tiny.preprocessed / tiny.name / configuration["data_identifier"], 1, (4, 4, 4))
    architecture = Architecture.from_plans(configuration["architecture"], 1, 1)
    torch.manual_seed(0)
    setup = Setup(architecture, (32, 32, 32), (1.0, 2.0, 1.5), 2, False, tuple(cases))
    return Dense(setup, DenseOptions(**{"num_positions": 64, **options})).train()


def smooth_batch() -> dict:
    """A smooth image, so that interpolated values can be compared, with a corner that is not valid."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, 32),) * 3, indexing="ij")
    image = torch.stack([(axes[0] * 2 + axes[1] - axes[2] * 0.5).sin() + 2] * 2)[:, None]
    valid = torch.ones_like(image, dtype=torch.bool)
    valid[:, :, :8] = False
    return {"image": image * valid, "valid": valid}


def test_sampled_positions_show_the_same_voxel_in_both_views(tiny, monkeypatch):
    monkeypatch.setattr(dense, "apply_intensity", lambda image, change: image)
    batch = smooth_batch()
    views = make(tiny).make_views(batch, torch.Generator().manual_seed(1))
    valid = views["valid_mask"]
    assert 0.5 < valid.float().mean() < 1

    def look_up(image, positions):
        return sample_hypercolumns(HypercolumnMaps(("image",), (image,)), (32, 32, 32), positions)[..., 0]

    original = look_up(batch["image"], views["position"] + 31 / 2)
    for name in ("first", "second"):
        seen = look_up(views[name], views[f"position_in_{name}"])
        close = (seen - original)[valid].abs() < 0.05
        assert close.float().mean() > 0.9  # the others lie next to the border of the valid region
    shifted = look_up(views["first"], views["position_in_second"])
    assert ((shifted - original)[valid].abs() < 0.05).float().mean() < 0.6


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_every_trained_parameter_receives_a_gradient(tiny, weight):
    method = make(tiny, weight_reconstruction=weight)
    batch = {k: v for k, v in method.dataset(10, 0, 0)[0].items() if k != "keys"}
    output = method(method.make_views(batch, torch.Generator().manual_seed(0)), 0.0)
    assert set(output.losses) == {"contrast", "reconstruction"} if weight else {"contrast"}
    sum(output.losses.values()).backward()
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


def test_equal_features_are_reported_as_a_collapse_with_a_remedy(tiny, monkeypatch):
    method = make(tiny)
    batch = {k: v for k, v in method.dataset(10, 0, 0)[0].items() if k != "keys"}
    views = method.make_views(batch, torch.Generator().manual_seed(0))
    matched = {"matched": float(method(views, 0.0).diagnostics["matched"])}
    assert method.problems(matched) == []
    noise = torch.Generator().manual_seed(1)
    monkeypatch.setattr(method, "_rows", lambda *_: 1 + 1e-4 * torch.randn(2, 64, 8, generator=noise))
    found = [float(method(views, 0.0).diagnostics["matched"]) for _ in range(20)]
    matched = {"matched": sum(found) / len(found)}
    assert "collapse" in method.problems(matched)[0]
    assert "--set lr" in method.problems(matched)[0]


def test_positions_find_themselves_after_a_short_training_and_the_trainer_loads_the_weights(tiny, results):
    settings = ["epochs=2", "iterations=12", "workers=0", "num_positions=64", "features=16"]
    path = run_pretraining("dense", tiny.name, "3d_fullres", device="cpu", settings=settings)
    checkpoint = load_checkpoint(path)
    history = checkpoint.metadata["progress"]["history"]
    assert history[1]["contrast"] < history[0]["contrast"]
    assert history[1]["matched"] > history[0]["matched"]
    trainer = make_trainer(tiny, "DenseTrainer_1epoch", seed=1)
    trainer.on_train_start()
    pretrained = checkpoint.section("network")
    for name, value in values(trainer.plain_network).items():
        if "seg_layers" not in name:
            assert torch.equal(value, pretrained[name]), name
    report = results / "DenseTrainer_1epoch__nnUNetPlans__3d_fullres/fold_0/transfer_report.json"
    assert json.loads(report.read_text())["transfer"] == "encoder+decoder"
