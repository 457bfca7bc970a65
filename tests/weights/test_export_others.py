"""Export in nnssl's format, checked against its documented rules, and the model card."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import CheckpointCorruptError, OutputError, WeightsIncompatibleError
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.importers.importing import import_foreign
from nnunet_invariance.weights.model_card import export_card
from nnunet_invariance.weights.nnssl_export import export_nnssl
from tests.helpers.small_checkpoints import NETWORKS, architecture, build, write

TOP = {
    "network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch", "init_args",
    "trainer_name", "nnssl_adaptation_plan",
}  # fmt: skip
PLAN = {
    "architecture_plans", "pretrain_plan", "pretrain_num_input_channels", "recommended_downstream_patchsize",
    "key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe",
}  # fmt: skip
PRETRAIN = {
    "dataset_name", "plans_name", "original_median_spacing_after_transp", "image_reader_writer", "transpose_forward",
    "transpose_backward", "configurations", "experiment_planner_used",
}  # fmt: skip
CONFIGURATION = {
    "data_identifier", "preprocessor_name", "spacing_style", "normalization_schemes", "use_mask_for_norm",
    "resampling_fn_data", "resampling_fn_data_kwargs", "resampling_fn_mask", "resampling_fn_mask_kwargs", "spacing",
    "patch_size",
}  # fmt: skip


def load_as_upstream(path: Path, channels: int, classes: int) -> torch.nn.Module:
    """The loader's written rules: the network of the adaptation plan, encoder and stem strictly, the rest random."""
    content = torch.load(path, weights_only=True)
    plan = content["nnssl_adaptation_plan"]
    kind = plan["architecture_plans"]
    network = get_network_from_plans(
        f"dynamic_network_architectures.architectures.unet.{kind['arch_class_name']}",
        kind["arch_kwargs"],
        kind["arch_kwargs_requiring_import"],
        channels,
        classes,
        deep_supervision=False,
    )
    for key in {plan["key_to_encoder"], plan["key_to_stem"]}:
        inside = {
            k.removeprefix(f"{key}."): v for k, v in content["network_weights"].items() if k.startswith(f"{key}.")
        }
        network.get_submodule(key).load_state_dict(inside, strict=True)
    for key in plan["keys_to_in_proj"]:
        assert network.get_submodule(key).weight.shape[1] == plan["pretrain_num_input_channels"]
    return network


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("pretrained", [["encoder"], ["encoder", "decoder"]])
def test_the_file_follows_the_documented_rules_and_loads_by_them(tmp_path, network, pretrained):
    planned = architecture(network, channels=2)
    export_nnssl(write(tmp_path / "c.safetensors", planned, pretrained=pretrained), tmp_path / "out.pth")
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert content.keys() >= TOP
    plan = content["nnssl_adaptation_plan"]
    assert plan.keys() == PLAN
    assert plan["architecture_plans"].keys() == {"arch_class_name", "arch_kwargs", "arch_kwargs_requiring_import"}
    assert plan["architecture_plans"]["arch_class_name"] == network  # nnssl's own check wants a bare name
    assert plan["pretrain_plan"].keys() == PRETRAIN
    (entry,) = plan["pretrain_plan"]["configurations"].values()
    assert entry.keys() == CONFIGURATION
    assert entry["spacing_style"] == "onemmiso"
    assert plan["key_to_lpe"] is None
    assert any(name.startswith("decoder.") for name in content["network_weights"]) == ("decoder" in pretrained)

    theirs, teacher = load_as_upstream(tmp_path / "out.pth", 2, 4), build(planned, 2)
    image = torch.randn(1, 2, 16, 16, 16)
    with torch.no_grad():
        for mine, their in zip(teacher.encoder(image), theirs.encoder(image), strict=True):
            assert torch.equal(mine, their)


@pytest.mark.parametrize("network", NETWORKS)
def test_export_and_import_are_bit_equal(tmp_path, network):
    file = write(tmp_path / "c.safetensors", architecture(network, classes=3), spacing=[2.0, 1.0, 1.0])
    export_nnssl(file, tmp_path / "out.pth", branch="student")
    back = load_checkpoint(import_foreign(tmp_path / "out.pth"))
    first = load_checkpoint(file).section("network")
    for name, tensor in back.section("network").items():
        assert ".seg_layers." in name or torch.equal(tensor, first[name]), name
    assert back.section("network").keys() == first.keys()
    assert back.metadata["pretrained"] == ["encoder", "decoder"]
    assert back.metadata["spacing"] == [2.0, 1.0, 1.0]


@pytest.mark.skipif("NNSSL_CHECKOUT" not in os.environ, reason="set NNSSL_CHECKOUT to a checkout of MIC-DKFZ/nnssl")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pretrained", [["encoder"], ["encoder", "decoder"]])
def test_nnssls_verification_accepts_the_file_and_refuses_a_damaged_one(tmp_path, monkeypatch, pretrained, channels):
    monkeypatch.syspath_prepend(Path(os.environ["NNSSL_CHECKOUT"], "src"))
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnssl_{name}", str(tmp_path))
    trainers = pytest.importorskip("nnssl.training.nnsslTrainer.AbstractTrainer")
    planned = architecture("ResidualEncoderUNet", channels=channels)
    export_nnssl(write(tmp_path / "c.safetensors", planned, pretrained=pretrained), tmp_path / "out.pth")
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    plan = content["nnssl_adaptation_plan"]
    (name,) = plan["pretrain_plan"]["configurations"]
    verify, weights = trainers.AbstractBaseTrainer.verify_adaptation_plans, content["network_weights"]
    verify(plan, name, weights)  # raises where a tensor is missing or of another shape
    del weights[next(key for key in weights if key.startswith(plan["key_to_encoder"]))]
    with pytest.raises(RuntimeError, match="Missing key"):
        verify(plan, name, weights)


@pytest.mark.parametrize("form", ["nnssl", "card"])
def test_a_random_decoder_is_for_nnunet_only(tmp_path, form, capsys):
    file = write(tmp_path / "c.safetensors", pretrained=["encoder"])
    words = ["weights", "export", str(file), str(tmp_path / "out"), "--format", form]
    assert main([*words, "--random-decoder"]) == 2
    assert (
        f"--random-decoder applies to --format nnunet only; the format {form} needs no decoder"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
    assert main(words) == 0


@pytest.mark.parametrize("form", ["nnunet", "nnssl", "card"])
def test_a_file_without_a_teacher_gives_its_only_network(tmp_path, form, capsys):
    file, out = write(tmp_path / "c.safetensors", teacher=False), tmp_path / "out"
    words = ["weights", "export", str(file), str(out), "--format", form]
    assert main([*words, "--branch", "teacher"]) == 2
    assert f"{file} has no teacher. Use its student: --branch student." in capsys.readouterr().err
    assert not out.exists()
    assert main(words) == 0
    first = load_checkpoint(file).section("network")
    if form == "card":
        written = load_checkpoint(out / "model.safetensors").section("network")
    else:
        written = torch.load(out, weights_only=True)["network_weights"]
    for name, tensor in first.items():
        assert ".seg_layers." in name or torch.equal(tensor, written[name]), name


def to_builtin(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and to_builtin(item) for key, item in value.items())
    if isinstance(value, list):
        return all(to_builtin(item) for item in value)
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.Tensor)


def test_only_tensors_and_native_types(tmp_path):
    export_nnssl(write(tmp_path / "c.safetensors"), tmp_path / "out.pth")
    assert to_builtin(torch.load(tmp_path / "out.pth", weights_only=True))


def test_files_that_cannot_be_exported_are_refused(tmp_path):
    with pytest.raises(CheckpointCorruptError, match="have no spacing, which nnssl needs"):
        export_nnssl(write(tmp_path / "a.safetensors", spacing=None), tmp_path / "out.pth")
    file = write(tmp_path / "c.safetensors", teacher=False)
    for export in (export_nnssl, export_card):
        with pytest.raises(WeightsIncompatibleError, match="has no teacher"):
            export(file, tmp_path / "out", branch="teacher")
        (tmp_path / "there").touch()
        with pytest.raises(OutputError, match="there exists"):
            export(file, tmp_path / "there")
    assert not (tmp_path / "out").exists()


def test_the_model_card_is_complete_and_its_weights_load(tmp_path):
    file = write(tmp_path / "run" / "c.safetensors")
    (tmp_path / "run" / "metrics.csv").write_text("epoch,loss\n1,2.5\n2,1.5\n")
    (tmp_path / "run" / "samples.png").write_bytes(b"picture")
    folder = export_card(file, tmp_path / "card")
    names = {"model.safetensors", "config.json", "preprocessing.json", "metrics.json", "SHA256SUMS", "README.md"}
    names |= {"samples.png"}
    assert {path.name for path in folder.iterdir()} == names
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == names - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    card, first = load_checkpoint(folder / "model.safetensors"), load_checkpoint(file)
    assert {name.split(".")[0] for name in card.tensors} == {"teacher"}
    assert all(torch.equal(tensor, first.tensors[name]) for name, tensor in card.tensors.items())
    assert json.loads((folder / "metrics.json").read_text()) == {"epoch": "2", "loss": "1.5"}
    assert json.loads((folder / "preprocessing.json").read_text())["patch_size"] == [32, 32, 32]
    assert json.loads((folder / "config.json").read_text())["branch"] == "teacher"
    page = (folder / "README.md").read_text()
    assert "nnunet-invariance weights plan DATASET model.safetensors" in page
    head = yaml.safe_load(page.split("---")[1])
    assert head["tags"][-1] == json.loads((folder / "config.json").read_text())["method"]
    assert "](samples.png)" in page
    assert "| licence | not stated; before you publish" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card", "run"]


def test_command_line_writes_both(tmp_path, capsys):
    file = write(tmp_path / "c.safetensors")
    assert main(["weights", "export", str(file), str(tmp_path / "out.pth"), "--format", "nnssl"]) == 0
    assert main(["weights", "export", str(file), str(tmp_path / "card"), "--format", "card"]) == 0
    out = capsys.readouterr().out
    assert "Transfer report" in out
    assert f"finished: {tmp_path / 'card'}" in out
    assert json.loads((tmp_path / "card" / "metrics.json").read_text()) == {}
