"""`pretrain anatomix`: both forms of the command, continuing, and errors."""

import csv
import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import OptionError, TemplateError
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.pretraining.engine.settings import parse_settings
from nnunet_invariance.pretraining.methods.anatomix import Anatomix, AnatomixPretrainingOptions
from nnunet_invariance.pretraining.methods.anatomix_networks import NETWORK_PRESETS
from nnunet_invariance.weights.checkpoint import load_checkpoint, read_metadata
from tests.helpers.pretraining_runs import run_preset, run_pretraining, stopped_after_step
from tests.helpers.tiny_anatomix import make
from tests.helpers.tiny_pretraining import assert_same, tensors

SHORT = ["epochs=2", "iterations=2", "workers=0", "held_out=1", "num_positions=64", "volume=32"]


@pytest.fixture
def run_folder(results):
    """Folder of the run in this test's results tree."""
    return results / "pretraining" / "anatomix__nnUNetPlans__3d_fullres"


def pretrain(tiny, *settings, resume=False):
    return run_pretraining(
        "anatomix", tiny.name, "3d_fullres", device="cpu", resume=resume, settings=[*SHORT, *settings]
    )


def test_a_run_pre_trains_encoder_and_decoder_and_reads_no_case(tiny, run_folder, monkeypatch):
    monkeypatch.setattr("nnunet_invariance.nnunet.cases.load_volume", None)
    path = pretrain(tiny)
    assert {p.name for p in run_folder.iterdir()} == {
        "checkpoint_final.safetensors", "metrics.csv", "progress.png", "samples.png", "log.txt",
        "manifest.json", "run.json", "lock",
    }  # fmt: skip
    metadata = read_metadata(path)
    assert metadata["method"] == "anatomix"
    assert metadata["pretrained"] == ["encoder", "decoder"]
    assert metadata["channel_names"] == ["synthetic"]
    assert metadata["architecture"]["input_channels"] == 1
    assert metadata["options"]["lr"] == 2e-4  # the method's default
    rows = list(csv.DictReader((run_folder / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [2, 4]
    assert all(float(row["held_out_loss"]) > 0 and 0 <= float(row["label_retrieval"]) <= 1 for row in rows)


@pytest.mark.parametrize(
    "extra",
    [("patch=16", "cuts=3"), pytest.param(("grad_accum_steps=2",), marks=pytest.mark.slow)],
    ids=["cuts", "accumulated"],
)
def test_a_run_that_was_stopped_ends_bit_identical(tiny, run_folder, extra):
    whole = tensors(pretrain(tiny, *extra))
    with stopped_after_step(2):
        pretrain(tiny, *extra)
    torch.rand(7)  # the global generator is elsewhere now
    assert_same(tensors(pretrain(tiny, *extra, resume=True)), whole)


@pytest.mark.slow
def test_a_run_killed_with_sigkill_ends_bit_identical(tiny, run_folder):
    whole = tensors(pretrain(tiny, "epochs=3"))
    command = [sys.executable, "-m", "nnunet_invariance", "pretrain", "anatomix", tiny.name, "3d_fullres", "-device"]
    command += ["cpu", "--epochs", "3", "--iterations", "2", "--set", *SHORT[2:]]
    (run_folder / "checkpoint_final.safetensors").rename(run_folder / "whole")
    process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    latest, deadline = run_folder / "checkpoint_latest.safetensors", time.time() + 200
    while not latest.is_file() and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert 0 < read_metadata(latest)["step"] < 6
    assert_same(tensors(pretrain(tiny, "epochs=3", resume=True)), whole)


@pytest.mark.integration
def test_the_form_without_a_dataset(tmp_path, monkeypatch, capsys):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    out = tmp_path / "run"
    words = ["--epochs", "1", "--iterations", "1", "-device", "cpu", "--set", "patch=32", *SHORT[2:]]
    assert main(["pretrain", "anatomix", "--network", "anatomix", "--out", str(out), *words]) == 0
    final = out / "checkpoint_final.safetensors"
    assert f"finished: {final}" in capsys.readouterr().out
    checkpoint = load_checkpoint(final)
    assert checkpoint.metadata["plans_name"] == "anatomix"
    assert checkpoint.metadata["plans"]["architecture"]["network_class_name"].endswith("AnatomixUNet")
    assert "encoder.model.0.weight" in checkpoint.section("network")
    assert (out / "metrics.csv").is_file()
    assert (out / "manifest.json").is_file()


@pytest.mark.integration
def test_presets_are_the_stock_networks():
    for name, megabytes in (("plain3", 2.7), ("plain4", 11.2), ("plain6", 62), ("resenc3", 8.7)):
        network = Architecture.from_plans(NETWORK_PRESETS[name].architecture, 1, 1).build()
        assert sum(p.numel() for p in network.parameters()) * 2 / 1e6 == pytest.approx(megabytes, rel=0.02)


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--network", "anatomix"],
        ["--out", "somewhere"],
        ["777"],
        ["777", "3d_fullres", "--network", "anatomix", "--out", "somewhere"],
    ],
)
def test_an_incomplete_command_is_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "anatomix", *words]) == 2
    assert "either DATASET CONFIGURATION, or --network NAME --out DIR" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_unknown_networks_and_methods_without_one(tmp_path):
    with pytest.raises(
        OptionError, match="--network vit: anatomix pre-trains anatomix, plain3, plain4, plain6, resenc3"
    ):
        run_preset("anatomix", "vit", tmp_path / "run", "cpu")
    with pytest.raises(OptionError, match="mae pre-trains no network without a dataset"):
        run_preset("mae", "anatomix", tmp_path / "run", "cpu")
    assert list(tmp_path.iterdir()) == []


def test_images_are_refused(tiny, run_folder, tmp_path):
    with pytest.raises(OptionError, match="--images: anatomix makes its own images"):
        run_pretraining("anatomix", tiny.name, "3d_fullres", images=[tmp_path], device="cpu")
    assert not run_folder.exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("pretext=inpainting", "expected one of 'labels', 'positions', 'denoising'"),
        ("num_positions=1", "'num_positions' is 1; expected a whole number of at least 2"),
        ("grad_accum_steps=0", "'grad_accum_steps' is 0; expected a whole number of at least 1"),
        ("compile=maybe", "not a valid bool"),
    ],
)
def test_wrong_options_are_named(tmp_path, word, message):
    with pytest.raises(OptionError, match=message):
        run_preset("anatomix", "anatomix", tmp_path / "run", "cpu", settings=[word])
    assert list(tmp_path.iterdir()) == []


def test_unusable_patches_and_templates_are_refused(tmp_path):
    with pytest.raises(OptionError, match="multiples of 4"):
        Anatomix(make().setup, AnatomixPretrainingOptions(patch=34))
    with pytest.raises(OptionError, match=r"'cuts' is 2; expected 0 or 1, because a patch of .* is the whole volume"):
        make(cuts=2)
    with pytest.raises(TemplateError, match="is not a folder"):
        make(templates=str(tmp_path / "nowhere"))


def test_boolean_options_are_read_from_text():
    assert parse_settings(["compile=true"]).loop == {"compile": True}
    assert parse_settings(["compile=0"]).loop == {"compile": False}


@pytest.mark.slow
def test_a_compiled_forward_pass_has_the_same_losses(tiny, run_folder, monkeypatch):
    settings = ("epochs=1", "iterations=1", "held_out=0")
    plain = read_metadata(pretrain(tiny, *settings))["progress"]["history"][0]
    compiled = []

    def compile_eagerly(module, *args, **kwargs):  # no compiler needed; the graph is traced all the same
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_eagerly)
    traced = read_metadata(pretrain(tiny, *settings, "compile=1"))["progress"]["history"][0]
    assert [type(module) for module in compiled] == [Anatomix]
    for name in ("loss", "encoder_0", "decoder_0"):
        assert traced[name] == pytest.approx(plain[name], rel=1e-4)
