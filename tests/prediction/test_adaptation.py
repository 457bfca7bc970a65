"""Adaptation of the norms to images without labels: what changes, by how much, and what is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import OutputError, UnsupportedConfigurationError
from nnunet_invariance.losses.consistency import ConsistencyLoss
from nnunet_invariance.prediction import AdaptationOptions, adapt_model, open_model
from nnunet_invariance.prediction.adaptation import adapt_norms, cut_patch, norm_parameters
from nnunet_invariance.prediction.styles import random_style
from tests.helpers.tiny_models import CPU


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True), nn.LeakyReLU(), nn.Conv2d(4, 3, 1)
    )


# ---- steps -----------------------------------------------------------------------------------------------------------


def test_only_the_norms_change_and_by_the_gradient_of_the_disagreement():
    network, patches = small_network(), [torch.randn(1, 8, 8) for _ in range(2)]
    slow = small_network()
    slow.load_state_dict(network.state_dict())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    losses = adapt_norms(network, patches, ConsistencyLoss(), AdaptationOptions(lr=0.05, seed=4))
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.weight", "1.bias"}

    generator = torch.Generator().manual_seed(4)
    moments = [{"m": torch.zeros(4), "v": torch.zeros(4)} for _ in range(2)]
    for step, patch in enumerate(patches, 1):
        first, second = (slow(random_style(patch[None], (), generator)).softmax(1) for _ in range(2))
        mean = (first + second) / 2
        value = ((first * (first / mean).log()).sum(1) + (second * (second / mean).log()).sum(1)).mean() / 2
        assert losses[step - 1] == pytest.approx(value.item(), rel=1e-4)
        gradients = torch.autograd.grad(value, [slow[1].weight, slow[1].bias])
        for parameter, gradient, moment in zip([slow[1].weight, slow[1].bias], gradients, moments, strict=True):
            moment["m"] = 0.9 * moment["m"] + 0.1 * gradient
            moment["v"] = 0.999 * moment["v"] + 0.001 * gradient**2
            corrected = moment["m"] / (1 - 0.9**step), moment["v"] / (1 - 0.999**step)
            parameter.data -= 0.05 * corrected[0] / (corrected[1].sqrt() + 1e-8)
    for found, expected in zip(network[1].parameters(), slow[1].parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.integration
def test_the_disagreement_falls():
    network, patch = small_network(), torch.randn(1, 16, 16)
    losses = adapt_norms(network, [patch] * 150, ConsistencyLoss(), AdaptationOptions(lr=0.05))
    assert np.mean(losses[-30:]) < 0.6 * np.mean(losses[:30])


def test_a_network_without_affine_norms_is_refused():
    with pytest.raises(UnsupportedConfigurationError, match="no normalisation layers with weights"):
        norm_parameters(nn.Sequential(nn.Conv3d(1, 2, 1), nn.InstanceNorm3d(2)))


# ---- patches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 5, 6), (8, 5, 6), (5, 6)])
def test_patches_are_cut_around_bright_voxels_and_padded_with_zeros(size):
    rng = np.random.default_rng(0)
    image = rng.random((2, 6, 9, 7)).astype(np.float32) + 1
    image[:, 3, 4, 2] = 50
    dims = len(size)
    for _ in range(5):
        patch = cut_patch(image, size, rng).numpy()
        assert patch.shape == (2, *size)
        assert (patch == 50).any() or image.mean() < 2  # the only voxel above the mean is in every patch
        inside = patch[(slice(None), *(slice(min(s, n)) for s, n in zip(size, image.shape[-dims:], strict=True)))]
        assert (inside >= 1).all()
        assert patch.sum() == pytest.approx(inside.sum())


# ---- model folders ---------------------------------------------------------------------------------------------------


def test_the_command_writes_a_folder_that_the_stock_predictor_loads(tiny_model, tiny, tmp_path):
    images, out = tiny.raw / tiny.name / "imagesTs", tmp_path / "adapted"
    command = [
        "adapt",
        str(tiny_model),
        "-i",
        str(images),
        "-o",
        str(out),
        "-device",
        "cpu",
        "--steps",
        "1",
        "--lr",
        "0.1",
    ]
    assert main(command) == 0
    before, after = (open_model(nnUNetPredictor(**CPU), folder) for folder in (tiny_model, out))
    old, new = before.network.state_dict(), after.network.state_dict()
    norms = {name for name in old if ".norm." in name or ".all_modules.1." in name}
    assert {name for name in old if not torch.equal(old[name], new[name])} == norms
    assert after.trainer_name == before.trainer_name
    checkpoint = torch.load(out / "fold_0/checkpoint_final.pth", weights_only=True)
    assert checkpoint["adaptation"] == {"steps": 1, "lr": 0.1, "seed": 0, "cases": 2}
    assert json.loads((out / "plans.json").read_text()) == json.loads((tiny_model / "plans.json").read_text())


def test_an_output_folder_that_is_not_empty_is_refused(tiny_model, tmp_path):
    Path(tmp_path, "file").touch()
    with pytest.raises(OutputError, match="is not empty"):
        adapt_model(tiny_model, tmp_path, tmp_path)
