"""Weights that ship with the package: half precision, which plans they fit, and the script that trains them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from benchmarks.shipped_weights import __main__, retrieval
from nnunet_invariance.common.hashing import sha256_of_file
from nnunet_invariance.errors import WeightsNotFoundError
from nnunet_invariance.networks.planned import Architecture, unique_tensors
from nnunet_invariance.networks.stock import plain_conv_unet
from nnunet_invariance.plans.options import AnatomixTrainerOptions, PretrainedOptions
from nnunet_invariance.pretraining.engine.target import preset_target
from nnunet_invariance.pretraining.methods import anatomix_networks
from nnunet_invariance.pretraining.methods.anatomix import Anatomix
from nnunet_invariance.trainers.weights import find_and_load_weights
from nnunet_invariance.weights import locate
from nnunet_invariance.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers.small_checkpoints import architecture, build, metadata, tensors
from tests.helpers.tiny_trainers import make_trainer

NAMES = ("Dataset777_Tiny", "nnUNetPlans", "3d_fullres")


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> Path:
    """A package with half-precision weights of anatomix for one input channel, and empty other places."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.delenv(locate.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(locate, "SHIPPED", tmp_path / "shipped")
    path = tmp_path / "shipped" / "anatomix_toy.safetensors"
    planned = architecture(classes=1)
    halves = {name: t.half() for name, t in tensors(planned, teacher=False).items() if "seg_layers" not in name}
    save_checkpoint(path, halves, metadata(planned, method="anatomix"))
    return path


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transfer", ["encoder", "encoder+decoder"])
def test_half_precision_is_cast_on_load(shipped, channels, transfer):
    network = build(architecture(channels=channels, classes=4), seed=5)
    before = {name: t.clone() for name, t in unique_tensors(network).items()}
    log = []
    report = find_and_load_weights(network, "anatomix", NAMES, PretrainedOptions(transfer=transfer), log.append)
    assert report["location"] == "shipped with the package"
    assert report["coverage"] == 1.0
    source = load_checkpoint(shipped).section("network")
    for name, value in unique_tensors(network).items():
        assert value.dtype == torch.float32
        taken = name.startswith("encoder.") or (transfer == "encoder+decoder" and "seg_layers" not in name)
        if not taken:
            assert torch.equal(value, before[name]), name
        elif value.shape == source[name].shape:
            assert torch.equal(value, source[name].float()), name
        else:  # summed in single precision
            assert torch.allclose(value, source[name].float().expand_as(value) / channels, rtol=1e-6)


@pytest.mark.parametrize("planned", [architecture(features=(8, 16, 32)), architecture("ResidualEncoderUNet")])
def test_plans_that_do_not_fit_get_the_usual_error_and_keep_their_values(shipped, planned):
    network = build(planned, seed=5)
    before = {name: t.clone() for name, t in unique_tensors(network).items()}
    with pytest.raises(WeightsNotFoundError) as error:
        find_and_load_weights(network, "anatomix", NAMES, PretrainedOptions(), print)
    line = next(line for line in str(error.value).splitlines() if line.startswith("  4."))
    assert "anatomix_toy.safetensors is for a PlainConvUNet with [4, 8, 16] features per stage" in line
    assert "nnunet-invariance pretrain anatomix Dataset777_Tiny 3d_fullres" in str(error.value)
    assert all(torch.equal(before[name], t) for name, t in unique_tensors(network).items())


def test_the_first_file_that_fits_is_taken(shipped):
    fitting = architecture(features=(8, 16, 32), classes=1)
    other = shipped.with_name("anatomix_wide.safetensors")
    save_checkpoint(other, tensors(fitting, teacher=False), metadata(fitting, method="anatomix"))
    network = build(architecture(features=(8, 16, 32)), seed=5)
    report = find_and_load_weights(network, "anatomix", NAMES, PretrainedOptions(), lambda line: None)
    assert report["checkpoint"] == str(other)


def test_the_shipped_file_matches_its_checksums_and_fits_the_stock_four_stage_network(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.delenv(locate.ENVIRONMENT_VARIABLE, raising=False)
    folder = Path(locate.__file__).parent / "shipped"
    sums = dict(line.split()[::-1] for line in (folder / "anatomix_plain4.sha256").read_text().splitlines())
    assert {name.rpartition(".")[2] for name in sums} == {"safetensors", "csv", "md", "png"}
    assert {name: sha256_of_file(folder / name) for name in sums} == sums
    stock = preset_target(Anatomix, "plain4", tmp_path).setup.architecture
    network = build(replace(stock, input_channels=2, num_classes=3), seed=5)
    report = find_and_load_weights(network, "anatomix", NAMES, AnatomixTrainerOptions(), lambda line: None)
    assert (report["location"], report["coverage"]) == ("shipped with the package", 1)


def test_every_shipped_file_has_a_card_with_licence_tags_picture_data_and_probe():
    for file in locate.shipped_files():
        card = file.with_suffix(".md").read_text()
        front, _, page = card.removeprefix("---\n").partition("\n---\n")
        assert {line.partition(":")[0] for line in front.splitlines()} >= {"license", "tags"}
        assert f"]({file.stem}.png)" in page
        for words in ("| shapes |", "## Gate", "| probe | cases |", "Licence"):
            assert words in page, words


# ---- the script ----------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch):
    """``benchmarks/shipped_weights``, with a network small enough for a test under the stock one's name."""
    small = anatomix_networks.stock_preset(plain_conv_unet((4, 8, 16)), 32)
    monkeypatch.setitem(anatomix_networks.NETWORK_PRESETS, "plain4", small)
    return __main__


def write_cases(root: Path, n: int) -> None:
    """Labelled images in nnU-Net's raw layout: a bright ball in a box that is smaller than the patch on one axis."""
    random = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    grid = np.stack(np.meshgrid(*(np.arange(s) for s in (20, 36, 40)), indexing="ij"))
    for case in range(n):
        labels = (np.square(grid - np.array([10, 18, 20])[:, None, None, None]).sum(0) < 64).astype(np.uint8)
        image = (labels * 100 + random.normal(0, 5, labels.shape)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(image), str(root / "imagesTr" / f"case_{case}_0000.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(root / "labelsTr" / f"case_{case}.nii.gz"))


SHORT = ["--epochs", "1", "--iterations", "1", "--networks", "2", "--synthetic", "2"]


@pytest.mark.integration
def test_weights_that_beat_random_ones_ship_with_card_log_and_checksums(script, shipped, tmp_path, monkeypatch):
    write_cases(tmp_path / "real", 2)
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--real", str(tmp_path / "real")]
    measured = script.measure

    def good(checkpoint, arguments):
        record = measured(checkpoint, arguments)
        assert set(record["retrieval"]) == {"synthetic", "real"}
        for kind in record["retrieval"].values():
            assert all(0 <= value <= 1 for value in [kind["trained"], *kind["random"]])
            kind["beats"] = True
        return record

    monkeypatch.setattr(script, "measure", good)
    assert script.main([*places, *SHORT]) == 0
    out = tmp_path / "out"
    stem = "anatomix_plain4"
    assert {p.name for p in out.iterdir()} == {f"{stem}.{e}" for e in ("safetensors", "csv", "md", "png", "sha256")}
    checkpoint = load_checkpoint(out / f"{stem}.safetensors")
    assert {t.dtype for t in checkpoint.tensors.values()} == {torch.float16}
    assert not [name for name in checkpoint.tensors if "seg_layers" in name or not name.startswith("network.")]
    assert str(tmp_path) not in json.dumps(checkpoint.metadata)
    card = (out / f"{stem}.md").read_text()
    assert "from equal features (0) to ideal ones (1)" in card
    assert str(tmp_path) not in card
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert f"]({stem}.png)" in card
    monkeypatch.setattr(locate, "SHIPPED", out)
    network = build(architecture(classes=3), seed=5)
    with pytest.raises(WeightsNotFoundError):  # other widths
        find_and_load_weights(build(architecture(features=(8, 8, 8)), 1), "anatomix", NAMES, PretrainedOptions(), print)
    report = find_and_load_weights(network, "anatomix", NAMES, PretrainedOptions(transfer="encoder"), lambda line: None)
    assert report["coverage"] == 1.0


@pytest.mark.slow
def test_weights_that_do_not_beat_random_ones_do_not_ship(script, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "synthetic_retrieval", lambda *arguments: 0.5)
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    assert script.main([*places, *SHORT]) == 1
    assert not (tmp_path / "out").exists()
    record = json.loads((tmp_path / "work" / "record.json").read_text())
    assert record["retrieval"]["synthetic"]["beats"] is False


def test_anatomix_trainer_starts_from_the_package(tiny, tmp_path, monkeypatch):
    monkeypatch.delenv(locate.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setattr(locate, "SHIPPED", tmp_path)
    entry = tiny.plans["configurations"]["3d_fullres"]["architecture"]
    planned = Architecture.from_plans(entry, 1, 1)
    path = tmp_path / "anatomix_tiny.safetensors"
    halves = {f"network.{n}": t.detach().half() for n, t in unique_tensors(build(planned, 3)).items()}
    save_checkpoint(path, halves, metadata(planned, method="anatomix"))
    trainer = make_trainer(tiny, "AnatomixTrainer_1epoch", seed=1)
    trainer.on_train_start()
    assert trainer.transfer_report["location"] == "shipped with the package"
    network = unique_tensors(trainer.plain_network)
    taken = [name for name in network if "seg_layers" not in name]
    assert all(torch.equal(network[name], halves[f"network.{name}"].float()) for name in taken)
