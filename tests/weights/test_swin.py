"""SwinUNETR: same function as in MONAI, and the files of MONAI and VoCo."""

import importlib.util
import json

import pytest
import torch

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import (
    CheckpointCorruptError,
    MissingPackageError,
    UnsupportedConfigurationError,
    WeightsIncompatibleError,
)
from nnunet_invariance.networks.architectures.swin_unetr import NETWORK, SwinUNETR, arch_kwargs, check_patch
from nnunet_invariance.networks.planned import unique_tensors
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.importers.importing import import_foreign, recognise
from nnunet_invariance.weights.importers.monai_swin import own_name
from nnunet_invariance.weights.inspection import inspect
from nnunet_invariance.weights.nnssl_format import names_of
from nnunet_invariance.weights.nnunet_export import export_nnunet
from nnunet_invariance.weights.transfer import load_pretrained
from nnunet_invariance.weights.trusted_architecture import trusted_architecture
from tests.helpers.planned_files import CONFIGURATION, NAME, write_planned
from tests.helpers.swin_files import MONAI, VOCO, WIDTH, bare, save, theirs, transformer

pytest.importorskip("monai")

FILES = [("monai-swin", name, MONAI[name], 1) for name in MONAI] + [("voco", name, VOCO[name], 2) for name in VOCO]


def image(channels: int = 1) -> torch.Tensor:
    """(1, channels, 64, 32, 32)."""
    return torch.randn(1, channels, 64, 32, 32, generator=torch.Generator().manual_seed(0))


def maps_of(network: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What MONAI's transformer says of an image read in x, y, z, back in z, y, x."""
    return [m.permute(0, 1, 4, 3, 2) for m in network.swinViT(x.permute(0, 1, 4, 3, 2), True)]


@pytest.mark.integration
@pytest.mark.parametrize("version", [1, 2])
def test_it_computes_monais_function_in_the_axis_order_of_its_pretraining(version):
    ours = SwinUNETR(1, 3, **arch_kwargs(WIDTH, version)).eval()
    state = {own_name(name): tensor for name, tensor in theirs(version).state_dict().items()}
    missing = ours.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert {name.rsplit(".", 1)[0] for name in missing.missing_keys} == {f"decoder.seg_layers.{i}" for i in range(4)}
    x = image()
    with torch.no_grad():
        expected = theirs(version)(x.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
        assert torch.allclose(ours(x), expected, atol=1e-5)
        ours.decoder.deep_supervision = True
        outputs = ours(x)
    assert torch.allclose(outputs[0], expected, atol=1e-5)
    assert [tuple(o.shape[2:]) for o in outputs] == [(64 // s, 32 // s, 32 // s) for s in (1, 2, 4, 8, 16)]


@pytest.mark.integration
def test_the_contract_of_encoders_and_every_parameter_gets_a_gradient():
    network = SwinUNETR(2, 3, **arch_kwargs(WIDTH, 1), deep_supervision=True)
    x = image(2)
    maps = network.encoder(x)
    assert [m.shape[1] for m in maps] == network.encoder.output_channels
    strides = torch.tensor(network.encoder.strides).cumprod(0)
    assert [list(m.shape[2:]) for m in maps] == [[64 // a, 32 // b, 32 // c] for a, b, c in strides.tolist()]
    sum(output.square().mean() for output in network(x)).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    with torch.device("meta"):
        assert sum(p.numel() for p in SwinUNETR(1, 1).encoder.parameters()) == pytest.approx(8.06e6, rel=0.01)


@pytest.mark.parametrize("patch", [[64, 64], [64, 64, 48], [32, 32, 32], [64, 64, 16]])
def test_patches_that_do_not_fit_are_refused(patch):
    with pytest.raises(UnsupportedConfigurationError, match=r"multiple of 32.*--keep checkpoint"):
        check_patch(patch)
    check_patch([64, 32, 32])


def test_a_patch_is_checked_in_the_forward_pass():
    with torch.device("meta"):
        network = SwinUNETR(1, 1, **arch_kwargs(WIDTH, 1))
    with pytest.raises(UnsupportedConfigurationError, match=r"\[48, 32, 32\]"):
        network(torch.zeros(1, 1, 48, 32, 32))


@pytest.mark.parametrize(
    "change", [{"n_stages": 5}, {"features_per_stage": [13, 13, 26, 52, 104, 208]}, {"version": 3}, {"axes": [0, 1, 1]}]
)
def test_other_networks_are_refused(change):
    with pytest.raises(UnsupportedConfigurationError, match="SwinUNETR was given"):
        SwinUNETR(1, 1, **{**arch_kwargs(WIDTH, 1), **change})


def test_the_meta_device_gets_the_whole_network():
    with torch.device("meta"):
        network = SwinUNETR(1, 2, **arch_kwargs(240, 2))
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}


def test_a_missing_monai_is_named(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "monai" else real(name))
    with pytest.raises(MissingPackageError, match=r"pip install 'monai"):
        SwinUNETR(1, 1)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize(("source", "name", "content", "version"), FILES, ids=[f"{f[0]}-{f[1]}" for f in FILES])
def test_every_spelling_is_imported_and_computes_the_same(tmp_path, source, name, content, version):
    content = content()
    file = save(content, tmp_path / "a.pt")
    assert recognise(file, content) == source
    checkpoint = load_checkpoint(import_foreign(file))
    metadata = checkpoint.metadata
    assert metadata["architecture"]["network_class_name"] == NETWORK
    assert metadata["pretrained"] == (["encoder", "decoder"] if name == "whole" else ["encoder"])
    kept = ("rotation_head", "norm", "mask_token", "teacher", "proj_head", "decoder.encoder")
    assert all(left.startswith(kept) for left in metadata["options"]["left_out"])

    ours = SwinUNETR(1, 5, **arch_kwargs(WIDTH, version)).eval()
    report = load_pretrained(ours, checkpoint, branch="student")
    assert report.coverage == 1
    assert not report.adapted
    x = image()
    with torch.no_grad():
        for mine, their in zip(ours.encoder(x)[1:], maps_of(theirs(version), x), strict=True):
            assert torch.allclose(mine, their, atol=1e-6)


@pytest.mark.integration
def test_import_and_export_are_bit_equal(tmp_path):
    out = import_foreign(save(MONAI["whole"](), tmp_path / "a.pt"))
    export_nnunet(out, tmp_path / "back.pth", branch="student")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["network_weights"]
    for name, tensor in theirs().state_dict().items():
        assert name.startswith("out.") or torch.equal(back[own_name(name)], tensor), name
    with pytest.raises(WeightsIncompatibleError, match="does not support a SwinUNETR"):
        names_of(trusted_architecture(load_checkpoint(out)))


@pytest.mark.integration
def test_equal_channels_give_the_output_of_one(tmp_path):
    checkpoint = load_checkpoint(import_foreign(save(MONAI["swin_vit"](), tmp_path / "a.pt")))
    network = SwinUNETR(3, 2, **arch_kwargs(WIDTH, 1)).eval()
    report = load_pretrained(network, checkpoint, branch="student")
    assert [entry.rule for entry in report.adapted] == ["input channels 1 -> 3"]
    with torch.no_grad():
        mine = network.encoder(image().expand(-1, 3, -1, -1, -1))[1:]
        for ours, their in zip(mine, maps_of(theirs(), image()), strict=True):
            assert torch.allclose(ours, their, atol=1e-4)


def without(state: dict, name: str) -> dict:
    return {key: value for key, value in state.items() if key != name}


def flat(state: dict) -> dict:
    return {**state, "swinViT.patch_embed.proj.weight": torch.zeros(WIDTH, 1, 2, 2)}


def deep(state: dict) -> dict:
    return {**state, "swinViT.layers3.0.blocks.2.norm1.weight": torch.zeros(48)}


def narrow(state: dict) -> dict:
    return {**state, "swinViT.layers1.0.blocks.0.norm1.weight": torch.zeros(7)}


def broken(state: dict) -> dict:
    return {**state, "swinViT.layers1.0.blocks.0.norm1.weight": torch.full((WIDTH,), torch.nan)}


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda s: without(s, "swinViT.layers2.0.blocks.1.norm1.bias"), WeightsIncompatibleError, "not in the file"),
        (flat, WeightsIncompatibleError, "contains a 2-D SwinUNETR"),
        (deep, WeightsIncompatibleError, "more than two blocks"),
        (narrow, WeightsIncompatibleError, r"\[7\] in the file, \[12\]"),
        (broken, CheckpointCorruptError, "NaN"),
    ],
    ids=["lacking", "2-D", "deeper", "shape", "NaN"],
)
def test_other_networks_are_refused_and_nothing_is_written(tmp_path, change, error, said):
    state = {f"swinViT.{name}": tensor for name, tensor in transformer().items()}
    with pytest.raises(error, match=said):
        import_foreign(save(change(state), tmp_path / "a.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_the_error_of_a_similar_file_names_the_missing_key(tmp_path):
    state = {f"swinViT.{name}": t for name, t in transformer().items() if not name.startswith("layers4")}
    with pytest.raises(WeightsIncompatibleError, match=r"nearest .* (monai-swin|voco).*lacks .*swinViT\.layers4"):
        import_foreign(save(state, tmp_path / "a.pt"))
    assert bare("mlp.linear1.bias") == "module.mlp.fc1.bias"


# ---- plans -----------------------------------------------------------------------------------------------------------


def test_plans_that_keep_the_checkpoint_name_it(tmp_path, monkeypatch, capsys):
    folder = write_planned(tmp_path, monkeypatch)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["transpose_forward"] = [0, 1, 2]
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    out = import_foreign(save(MONAI["model_swinvit"](), tmp_path / "a.pt"))
    assert main(["weights", "plan", NAME, str(out)]) == 2
    assert "SwinUNETR in the file, PlainConvUNet in the plans" in capsys.readouterr().err
    assert main(["weights", "plan", NAME, str(out), "--keep", "checkpoint"]) == 0
    printed = capsys.readouterr().out
    assert "spacing: the plans' value; the file does not give its own" in printed
    assert "normalisation: the plans' value; the file does not give its own" in printed
    assert "encoder: 100.00% from the file" in printed
    assert "-p nnUNetPlans_monai-swin -tr TransferTrainer" in printed
    entry = json.loads((folder / "nnUNetPlans_monai-swin.json").read_text())
    assert "pretrain_info" not in entry
    entry = entry["configurations"][CONFIGURATION]
    assert entry["architecture"]["network_class_name"] == NETWORK
    assert entry["architecture"]["arch_kwargs"]["axes"] == [2, 1, 0]
    assert entry["patch_size"] == [96, 96, 96]
    assert entry["data_identifier"] == "nnUNetPlans_3d_fullres"


def test_inspect_describes_the_file(tmp_path):
    info = inspect(save(VOCO["backbone"](), tmp_path / "a.pt"))
    assert info.format == "voco: a SwinUNETR of VoCo"
    assert info.architecture == "SwinUNETR"
    assert info.features_per_stage == [12, 12, 24, 48, 96, 192]
    assert "nnunet-invariance weights import voco " in info.remark


def test_buffers_that_are_never_saved_are_ignored():
    module = torch.nn.BatchNorm1d(2)
    module.register_buffer("made_anew", torch.zeros(1), persistent=False)
    assert unique_tensors(module).keys() == module.state_dict().keys()
