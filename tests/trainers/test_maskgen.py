"""MaskGenTrainer: frozen features of the shipped network and of the anatomix U-Net, with and without styles."""

import copy
import json
from pathlib import Path

import pytest
import torch

from nnunet_invariance.errors import (
    OptionError,
    UnsupportedConfigurationError,
    WeightsIncompatibleError,
    WeightsNotFoundError,
)
from nnunet_invariance.networks.architectures.anatomix_unet import NETWORK, arch_kwargs
from nnunet_invariance.networks.frozen_features import PlannedBackbone, plain4
from nnunet_invariance.networks.planned import Architecture, unique_tensors
from nnunet_invariance.networks.stock import PLAIN4, plain_conv_unet
from nnunet_invariance.weights.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from nnunet_invariance.weights.locate import shipped_files
from tests.helpers.small_checkpoints import metadata
from tests.helpers.tiny_dataset import cut_down
from tests.helpers.tiny_trainers import CONFIGURATION, assert_same, log_of, make_trainer, started, values, with_views

pytestmark = pytest.mark.usefixtures("results")

SHORT = {"iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "seed": 1}
UNET = Architecture(NETWORK, arch_kwargs("anatomix"), (), 1, 1)


def small_plans(tiny, name: str = "MaskGenPlans", **options) -> dict:
    """Patches of 16^3, for the shipped network."""
    plans = cut_down(
        tiny.plans, name, **{"iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "seed": 1, **options}
    )
    plans["configurations"][CONFIGURATION]["patch_size"] = [16, 16, 16]
    return plans


def unet_plans(tiny, **options) -> dict:
    """Patches of 32^3 in [0, 1], for the anatomix U-Net."""
    plans = cut_down(
        tiny.plans, "UNetPlans", **{"iterations_per_epoch": 2, "seed": 1, "features": "anatomix", **options}
    )
    plans["configurations"][CONFIGURATION]["normalization_schemes"] = ["RescaleTo01Normalization"]
    return plans


def write_unet(path: Path, prefix: str = "", **changes) -> Path:
    """The tensors of a random anatomix U-Net whose names begin with a prefix."""
    tensors = {f"network.{n}": t for n, t in unique_tensors(UNET.build()).items() if n.startswith(prefix)}
    save_checkpoint(path, tensors, metadata(UNET, method="anatomix", **changes))
    return path


# ---- features --------------------------------------------------------------------------------------------------------


def test_the_network_of_the_shipped_weights_is_the_one_that_is_built():
    (file,) = (path for path in shipped_files() if path.stem == "anatomix_plain4")
    found = read_metadata(file)["architecture"]
    assert found["arch_kwargs"] == json.loads(json.dumps(plain_conv_unet(PLAIN4)["arch_kwargs"]))
    assert (found["input_channels"], found["num_classes"]) == (1, 1)


def test_features_are_those_before_the_segmentation_layer_channel_by_channel():
    network = plain4().eval()
    seen: list[torch.Tensor] = []
    network.decoder.seg_layers[-1].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    image = torch.randn(2, 2, 16, 16, 16)
    with torch.no_grad():
        found = PlannedBackbone(network).features(image)
        for channel in range(2):
            network(image[:, channel : channel + 1])
            assert torch.allclose(found[:, 32 * channel : 32 * (channel + 1)], seen[-1], atol=1e-5)


def test_the_shipped_weights_are_loaded_do_not_change_and_the_planned_network_does(tiny):
    trainer, batch = started(tiny, "MaskGenTrainer", small_plans(tiny))
    assert trainer.transfer_report["location"] == "shipped with the package"
    encoder = trainer.network.encoder
    (file,) = (path for path in shipped_files() if path.stem == "anatomix_plain4")
    section = load_checkpoint(file).section("network")
    before = {name: tensor.clone() for name, tensor in unique_tensors(encoder.backbone.network).items()}
    assert all(torch.equal(before[name], section[name].float()) for name in section)
    planned = values(encoder.planned)
    assert not encoder.backbone.training
    trainer.train_step(batch)
    assert_same({n: t.clone() for n, t in unique_tensors(encoder.backbone.network).items()}, before)
    assert all(not torch.equal(v, planned[n]) for n, v in values(encoder.planned).items())
    assert not trainer.aux

    encoder.eval()
    image = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        features = encoder.backbone.features(image)
        mean, variance = features.mean((2, 3, 4), keepdim=True), features.var((2, 3, 4), keepdim=True, unbiased=False)
        wanted = encoder.planned(torch.cat((image, (features - mean) / (variance + 1e-5).sqrt()), 1))
        for found, expected in zip(encoder(image), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_unet_is_loaded_from_its_file(tiny, tmp_path):
    file = write_unet(tmp_path / "unet.safetensors")
    trainer = make_trainer(tiny, "MaskGenTrainer", unet_plans(tiny, checkpoint=str(file)))
    trainer.initialize()
    trainer.load_initial_weights()
    section = load_checkpoint(file).section("network")
    own = unique_tensors(trainer.network.encoder.backbone)
    assert all(torch.equal(own[name], section[name]) for name in section if "seg_layers" not in name)


def test_channels_are_hidden_in_training_only(tiny):
    trainer, _ = started(tiny, "MaskGenTrainer_scratch", small_plans(tiny, feature_dropout=0.5))
    encoder, seen = trainer.network.encoder, []
    encoder.planned.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    image = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        encoder(image)
        encoder.eval()(image)
    hidden = [(x.flatten(2).abs().amax(2) == 0).float().mean().item() for x in seen]
    assert seen[0].shape[1] == 33
    assert 0.2 < hidden[0] < 0.8
    assert hidden[1] == 0


# ---- styles ----------------------------------------------------------------------------------------------------------


def test_images_are_styled_only_if_the_options_ask_for_it(tiny):
    trainer, batch = started(tiny, "MaskGenTrainer_scratch", small_plans(tiny))
    assert batch["data"].shape[1] == 1  # no further views are made
    assert set(trainer.train_step(batch)) == {"loss"}
    assert "Style:" not in log_of(trainer)
    trainer, batch = started(tiny, "MaskGenTrainer_scratch", small_plans(tiny, style_probability=1.0))
    moved = with_views(trainer, batch)
    assert (trainer.style_view(moved, 2) - moved["views"].first).abs().max() > 0.1
    assert "Style: mixed" in log_of(trainer)
    losses = trainer.train_step(copy.deepcopy(batch))
    assert set(losses) == {"loss", "total"}


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_unsupported_plans_are_refused_and_leave_no_files(tiny, results):
    plans = small_plans(tiny)
    plans["configurations"][CONFIGURATION]["patch_size"] = [12, 16, 16]
    with pytest.raises(UnsupportedConfigurationError, match=r"halves every axis three times.*\[16, 16, 16\]"):
        make_trainer(tiny, "MaskGenTrainer", plans)
    plans = unet_plans(tiny)
    plans["configurations"][CONFIGURATION]["normalization_schemes"] = ["ZScoreNormalization"]
    with pytest.raises(UnsupportedConfigurationError, match=r"need images in \[0, 1\].*ZScore"):
        make_trainer(tiny, "MaskGenTrainer", plans)
    plans["configurations"][CONFIGURATION]["architecture"] = {
        "network_class_name": NETWORK, "arch_kwargs": arch_kwargs("anatomix"), "_kw_requires_import": []
    }  # fmt: skip
    with pytest.raises(UnsupportedConfigurationError, match="name an anatomix U-Net as the network"):
        make_trainer(tiny, "MaskGenTrainer", plans)
    with pytest.raises(OptionError, match=r"'features'.*'anatomix_plain4', 'anatomix'"):
        make_trainer(tiny, "MaskGenTrainer", small_plans(tiny, features="alice"))
    assert not results.exists()


def test_missing_and_incomplete_weights_are_refused(tiny, tmp_path):
    trainer = make_trainer(tiny, "MaskGenTrainer", unet_plans(tiny))
    with pytest.raises(WeightsNotFoundError, match="no weights for the features 'anatomix'"):
        trainer.on_train_start()
    half = write_unet(tmp_path / "half.safetensors", "encoder.", pretrained=["encoder"])
    trainer = make_trainer(tiny, "MaskGenTrainer", unet_plans(tiny, checkpoint=str(half)))
    with pytest.raises(WeightsIncompatibleError, match="whose features would be random"):
        trainer.on_train_start()
