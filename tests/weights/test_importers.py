"""Importers of nnU-Net, nnssl and state dicts for every network, and the files that they refuse."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nnunet_invariance.cli.main import main
from nnunet_invariance.common.hashing import sha256_of_file
from nnunet_invariance.errors import CheckpointCorruptError, InvarianceError, OutputError, WeightsIncompatibleError
from nnunet_invariance.networks.planned import Architecture, unique_tensors
from nnunet_invariance.networks.stock import REQUIRES_IMPORT
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.importers.importing import import_foreign, recognise
from nnunet_invariance.weights.importers.nnssl import RESENC_L
from nnunet_invariance.weights.inspection import inspect
from nnunet_invariance.weights.metadata import REQUIRED
from nnunet_invariance.weights.nnunet_export import export_nnunet
from nnunet_invariance.weights.transfer import load_pretrained
from nnunet_invariance.weights.trusted_architecture import architecture_of
from tests.helpers.foreign_checkpoints import (
    FILES,
    adaptation_plan,
    encoder_file,
    nnssl_file,
    nnunet_file,
    plans_of,
    write_foreign,
)
from tests.helpers.small_checkpoints import NETWORKS, architecture, build

CELLS = [(source, network) for source in FILES for network in NETWORKS]


def take(source: str, path: Path, **changes) -> Path:
    plans = json.loads(path.with_suffix(".json").read_text()) if source == "encoder" else None
    return import_foreign(path, importer=source, plans=plans, configuration="cfg", **changes)


# ---- contract --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "network"), CELLS)
def test_imported_networks_compute_the_same_as_the_original(tmp_path, source, network):
    planned = architecture(network, channels=2, classes=3)
    theirs = write_foreign(source, tmp_path / "theirs.pth", planned)
    assert recognise(tmp_path, torch.load(tmp_path / "theirs.pth", weights_only=False)) == source

    checkpoint = load_checkpoint(take(source, tmp_path / "theirs.pth"))
    assert checkpoint.metadata.keys() >= set(REQUIRED)
    assert checkpoint.metadata["method"] == f"import:{source}"
    assert checkpoint.metadata["parent_sha256"] == sha256_of_file(tmp_path / "theirs.pth")
    decoder = ["decoder"] if source != "encoder" else []
    assert checkpoint.metadata["pretrained"] == ["encoder", *decoder]
    for name, tensor in checkpoint.section("network").items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name

    ours = build(architecture(network, channels=2, classes=5), seed=9)
    report = load_pretrained(ours, checkpoint, branch="student")
    assert report.coverage == 1
    assert not report.adapted
    image = torch.randn(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for mine, their in zip(ours.encoder(image), theirs.encoder(image), strict=True):
            assert torch.equal(mine, their)


@pytest.mark.parametrize(("source", "network"), [cell for cell in CELLS if cell[0] != "encoder"])
def test_import_and_export_restore_the_state_dict(tmp_path, source, network):
    theirs = write_foreign(source, tmp_path / "theirs.pth", architecture(network, classes=3))
    out = take(source, tmp_path / "theirs.pth")
    export_nnunet(out, tmp_path / "back.pth", branch="student")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["network_weights"]
    assert back.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert ".seg_layers." in name or torch.equal(back[name], tensor), name


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(tmp_path, wrapper):
    planned = architecture()
    network = build(planned, 3)
    encoder_file(tmp_path / "a.pth", planned, network)
    state = {wrapper + name: tensor for name, tensor in network.encoder.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    section = load_checkpoint(take("encoder", tmp_path / "a.pth")).section("network")
    expected = {n: t for n, t in unique_tensors(network).items() if n.startswith("encoder.")}
    assert section.keys() == expected.keys()
    assert all(torch.equal(section[name], tensor) for name, tensor in expected.items())


def test_a_safetensors_file_without_metadata_is_imported(tmp_path, capsys):
    planned = architecture()
    network = encoder_file(tmp_path / "a.pth", planned, build(planned, 3)).with_suffix(".json")
    tensors = {name: t.clone() for name, t in build(planned, 3).encoder.state_dict().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    assert inspect(tmp_path / "a.safetensors").format.startswith("encoder")
    command = ["weights", "import", "encoder", str(tmp_path / "a.safetensors"), "--plans", str(network), "-c", "cfg"]
    assert main(command) == 0
    assert "a.imported.safetensors" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "a.imported.safetensors").metadata["pretrained"] == ["encoder"]


# ---- nnssl -----------------------------------------------------------------------------------------------------------


def test_nnssls_network_without_arguments_is_the_residual_encoder_l():
    entry = {
        "network_class_name": "ResidualEncoderUNet",
        "arch_kwargs": RESENC_L,
        "_kw_requires_import": REQUIRES_IMPORT,
    }
    with torch.device("meta"):
        network = architecture_of(Path("a.pth"), entry, 1, 1).build()
    assert network.encoder.output_channels == [32, 64, 128, 256, 320, 320]
    assert [len(stage.blocks) for stage in network.encoder.stages] == [1, 3, 4, 6, 6, 6]
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(102e6, rel=0.01)


@pytest.mark.slow
def test_a_file_of_the_residual_encoder_l_is_imported(tmp_path):
    planned = Architecture("ResidualEncoderUNet", RESENC_L, REQUIRES_IMPORT, 1, 1)
    entry = {
        "network_class_name": "ResidualEncoderUNet",
        "arch_kwargs": RESENC_L,
        "_kw_requires_import": REQUIRES_IMPORT,
    }
    network = architecture_of(Path("a"), entry, 1, 1).build()
    plan = {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    nnssl_file(tmp_path / "a.pth", planned, network, architecture_plans=plan)
    checkpoint = load_checkpoint(import_foreign(tmp_path / "a.pth"))
    assert checkpoint.metadata["pretrained"] == ["encoder", "decoder"]
    assert load_pretrained(architecture_of(Path("a"), entry, 1, 4).build(), checkpoint, branch="student").coverage == 1


def test_an_encoder_inside_another_module_is_found_and_other_tensors_are_listed(tmp_path):
    planned = architecture("ResidualEncoderUNet")
    network = build(planned, 3)
    nnssl_file(tmp_path / "a.pth", planned, network, key_to_encoder="student.encoder.stages")
    content = torch.load(tmp_path / "a.pth", weights_only=False)
    state = {f"student.encoder.{name}": tensor for name, tensor in network.encoder.state_dict().items()}
    content["network_weights"] = {**state, "projector.weight": torch.zeros(3)}
    torch.save(content, tmp_path / "a.pth")
    checkpoint = load_checkpoint(import_foreign(tmp_path / "a.pth"))
    assert checkpoint.metadata["pretrained"] == ["encoder"]
    assert checkpoint.metadata["options"]["left_out"] == ["projector.weight"]
    assert load_pretrained(build(planned, 9), checkpoint, branch="student").coverage == 1


def test_facts_about_nnssls_training_are_kept(tmp_path):
    planned = architecture(channels=2)
    nnssl_file(tmp_path / "a.pth", planned, build(planned, 3), pretrain_patch_size=[16, 16, 16])
    metadata = load_checkpoint(import_foreign(tmp_path / "a.pth")).metadata
    assert metadata["patch_size"] == [16, 16, 16]
    assert metadata["spacing"] == [1, 1, 1]
    assert metadata["normalization_schemes"] == ["ZScoreNormalization"] * 2
    assert (metadata["step"], metadata["total_steps"]) == (1000, 1000)
    assert metadata["options"]["recommended_downstream_patchsize"] == [32, 32, 32]
    assert metadata["options"]["trainer"] == "BaseMAETrainer"


# ---- nnU-Net ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_the_stock_trainer_is_imported(tmp_path, tiny, monkeypatch):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    dataset = json.loads((tiny.preprocessed / tiny.name / "dataset.json").read_text())
    trainer = nnUNetTrainer({**tiny.plans, "continue_training": False}, "3d_fullres", 0, dataset, torch.device("cpu"))
    trainer.initialize()
    trainer.save_checkpoint(str(tmp_path / "checkpoint_final.pth"))
    checkpoint = load_checkpoint(import_foreign(tmp_path / "checkpoint_final.pth"))
    assert checkpoint.metadata["channel_names"] == list(dataset["channel_names"].values())
    assert checkpoint.metadata["patch_size"] == [32, 32, 32]
    for name, tensor in unique_tensors(trainer.network).items():
        assert torch.equal(checkpoint.section("network")[name], tensor), name


def test_names_of_one_tensor_that_disagree_are_refused(tmp_path):
    planned = architecture()
    network = build(planned, 3)
    nnunet_file(tmp_path / "a.pth", planned, network)
    content = torch.load(tmp_path / "a.pth", weights_only=False)
    name = "decoder.encoder.stages.0.0.convs.0.all_modules.0.weight"
    content["network_weights"][name] = content["network_weights"][name] + 1
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointCorruptError, match=r"two values of encoder\.stages\.0\.0\.convs\.0\.conv\.weight"):
        import_foreign(tmp_path / "a.pth")
    assert not (tmp_path / "a.safetensors").exists()


def test_an_incomplete_decoder_is_not_imported(tmp_path):
    planned = architecture()
    nnunet_file(tmp_path / "a.pth", planned, build(planned, 3))
    content = torch.load(tmp_path / "a.pth", weights_only=False)
    del content["network_weights"]["decoder.transpconvs.0.weight"]
    torch.save(content, tmp_path / "a.pth")
    metadata = load_checkpoint(import_foreign(tmp_path / "a.pth")).metadata
    assert metadata["pretrained"] == ["encoder"]
    assert "decoder.transpconvs.1.weight" in metadata["options"]["left_out"]


# ---- refused ---------------------------------------------------------------------------------------------------------


def test_an_encoder_that_differs_from_its_plans_is_refused(tmp_path):
    encoder_file(tmp_path / "a.pth", architecture(features=(4, 12, 16)), build(architecture(), 3))
    with pytest.raises(WeightsIncompatibleError) as error:
        take("encoder", tmp_path / "a.pth")
    assert "encoder.stages.1.0.convs.0.conv.weight: [8, 4, 3, 3, 3] in the file, [12, 4, 3, 3, 3]" in str(error.value)


def test_an_encoder_without_metadata_needs_plans(tmp_path):
    encoder_file(tmp_path / "a.pth", architecture(), build(architecture(), 3))
    with pytest.raises(WeightsIncompatibleError, match="--plans FILE -c CONFIGURATION"):
        import_foreign(tmp_path / "a.pth")


def test_the_error_of_an_unknown_file_lists_its_keys_and_the_nearest_importer(tmp_path):
    torch.save({"network_weights": {}, "trainer_name": "x", "epoch": 1}, tmp_path / "a.pth")
    with pytest.raises(WeightsIncompatibleError) as error:
        import_foreign(tmp_path / "a.pth")
    assert "first keys: network_weights, trainer_name, epoch" in str(error.value)
    assert "nearest format is nnssl" in str(error.value) or "nearest format is nnunet" in str(error.value)
    torch.save({"weights": torch.zeros(1)}, tmp_path / "b.pth")
    with pytest.raises(WeightsIncompatibleError, match=r"first keys: weights\. No known format is near"):
        inspect(tmp_path / "b.pth")


def test_the_wrong_importer_is_refused(tmp_path):
    write_foreign("nnssl", tmp_path / "a.pth", architecture())
    with pytest.raises(WeightsIncompatibleError, match="of nnssl, which the importer 'nnunet' does not read"):
        import_foreign(tmp_path / "a.pth", importer="nnunet")


@pytest.mark.parametrize(
    ("text", "said"),
    [("version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"), ("\n<!DOCTYPE html>", "web page")],
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_lfs_pointers_and_web_pages_are_recognised(tmp_path, text, said, name, capsys):
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointCorruptError, match=said):
        import_foreign(tmp_path / name)
    assert main(["weights", "inspect", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err


def test_nothing_is_overwritten(tmp_path):
    write_foreign("nnunet", tmp_path / "a.pth", architecture())
    (tmp_path / "a.safetensors").write_text("keep")
    with pytest.raises(OutputError, match=r"a\.safetensors exists"):
        import_foreign(tmp_path / "a.pth")
    assert (tmp_path / "a.safetensors").read_text() == "keep"


def endless() -> dict:
    result: dict = {}
    result["again"] = result
    return result


def laughs() -> list:
    result: list = [1]
    for _ in range(30):
        result = [result] * 10
    return result


@pytest.mark.parametrize(
    "change",
    [
        {"network_class_name": "os.system"},
        {"arch_kwargs": {**architecture().arch_kwargs, "conv_op": "os.system"}},
        {"arch_kwargs": {**architecture().arch_kwargs, "conv_op": "torch.nn.modules.module._global_forward_hooks"}},
        {"arch_kwargs": {**architecture().arch_kwargs, "n_stages": 10**9}},
        {"arch_kwargs": {**architecture().arch_kwargs, "features_per_stage": [10**9] * 3}},
        {"arch_kwargs": {**architecture().arch_kwargs, "strides": 0}},
        {"arch_kwargs": {"n_stages": 3}},
        {"arch_kwargs": endless()},
        {"arch_kwargs": {"n_stages": laughs()}},
        {"arch_kwargs": None},
    ],
    ids=["class", "layer", "attribute", "stages", "features", "type", "lacking", "endless", "laughs", "none"],
)
def test_plans_that_no_planner_writes_are_refused(tmp_path, change):
    planned = architecture()
    nnunet_file(tmp_path / "a.pth", planned, build(planned, 3))
    content = torch.load(tmp_path / "a.pth", weights_only=False)
    content["init_args"]["plans"]["configurations"]["cfg"]["architecture"].update(change)
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InvarianceError, match=r"a\.pth"):
        import_foreign(tmp_path / "a.pth")
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize(
    "key", ["architecture_plans", "pretrain_plan", "key_to_encoder", "pretrain_num_input_channels"]
)
def test_incomplete_adaptation_plans_are_refused(tmp_path, key):
    planned = architecture()
    nnssl_file(tmp_path / "a.pth", planned, build(planned, 3))
    content = torch.load(tmp_path / "a.pth", weights_only=False)
    del content["nnssl_adaptation_plan"][key]
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointCorruptError, match=f"plans cannot be read .*{key}"):
        import_foreign(tmp_path / "a.pth")


# ---- command line ----------------------------------------------------------------------------------------------------


def test_inspect_describes_a_foreign_file(tmp_path, capsys):
    write_foreign("nnunet", tmp_path / "a.pth", architecture(channels=2))
    assert main(["weights", "inspect", str(tmp_path / "a.pth")]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    lines = {key: value.strip() for key, value in lines.items()}
    assert lines["format"] == "nnunet: a checkpoint of nnU-Net v2"
    assert lines["architecture"] == "PlainConvUNet"
    assert lines["channels"] == "T0, T1"
    assert lines["patch voxels"] == "32, 32, 32"
    assert lines["normalization"] == "ZScoreNormalization, ZScoreNormalization"


def test_import_writes_the_file_and_prints_the_next_command(tmp_path, capsys):
    write_foreign("nnssl", tmp_path / "a.pth", architecture())
    out = tmp_path / "ours.safetensors"
    assert main(["weights", "import", "nnssl", str(tmp_path / "a.pth"), str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"nnunet-invariance weights plan DATASET {out}" in printed
    assert "method" in printed
    assert load_checkpoint(out).metadata["data_identifier"] == "nnsslPlans_onemmiso"


def test_plans_that_are_not_json_are_refused(tmp_path, capsys):
    encoder_file(tmp_path / "a.pth", architecture(), build(architecture(), 3))
    (tmp_path / "a.json").write_text("{")
    command = ["weights", "import", "encoder", str(tmp_path / "a.pth"), "--plans", str(tmp_path / "a.json")]
    assert main(command) == 2
    assert "a.json is not a valid JSON file" in capsys.readouterr().err


def test_the_helpers_follow_the_formats():
    assert adaptation_plan(architecture())["key_to_lpe"] is None
    assert plans_of(architecture())["configurations"].keys() == {"cfg"}
