"""Exported files load with nnU-Net's own loader."""

from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunet_invariance.errors import OutputError, WeightsIncompatibleError
from nnunet_invariance.networks.planned import unique_tensors
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.foreign import open_foreign
from nnunet_invariance.weights.nnunet_export import export_nnunet
from tests.helpers.small_checkpoints import NETWORKS, architecture, build, write


@pytest.mark.parametrize("network_class", NETWORKS)
@pytest.mark.parametrize(("branch", "seed"), [("teacher", 2), ("student", 1)])
def test_stock_loader_reads_the_file_with_other_classes(
    tmp_path: Path, network_class: str, branch: str, seed: int
) -> None:
    planned = architecture(network_class, classes=1)
    report = export_nnunet(write(tmp_path / "c.safetensors", planned), tmp_path / "out.pth", branch=branch)
    assert report.decoder == "from the file"

    network = build(architecture(network_class, classes=4), seed=9)
    before = {name: t.detach().clone() for name, t in unique_tensors(network).items()}
    load_pretrained_weights(network, str(tmp_path / "out.pth"))
    expected = unique_tensors(build(planned, seed))
    for name, tensor in unique_tensors(network).items():
        wanted = before[name] if ".seg_layers." in name else expected[name]
        assert torch.equal(tensor, wanted), name


def test_file_has_builtin_types_and_metadata(tmp_path: Path) -> None:
    path = write(tmp_path / "c.safetensors")
    export_nnunet(path, tmp_path / "out.pth")
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert content.keys() == open_foreign(tmp_path / "out.pth").keys() == {"network_weights", "nnunet_invariance"}
    assert content["network_weights"].keys() == build(architecture(), seed=0).state_dict().keys()
    metadata = load_checkpoint(path).metadata
    assert content["nnunet_invariance"] == {**metadata, "branch": "teacher", "decoder": "from the file"}
    elements = {t.untyped_storage().data_ptr(): t.numel() for t in content["network_weights"].values()}
    assert sum(elements.values()) == sum(t.numel() for t in unique_tensors(build(architecture(), 0)).values())


def test_a_random_decoder_needs_the_flag_and_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "c.safetensors", pretrained=["encoder"])
    out = tmp_path / "out.pth"
    with pytest.raises(
        WeightsIncompatibleError, match=r"decoder in .*c\.safetensors was not pre-trained.*--random-decoder"
    ):
        export_nnunet(path, out)
    assert not out.exists()

    state = torch.get_rng_state()
    assert export_nnunet(path, out, random_decoder=True).decoder == "random"
    assert torch.equal(torch.get_rng_state(), state)
    content = open_foreign(out)
    assert content["nnunet_invariance"]["decoder"] == "random"
    teacher = load_checkpoint(path).section("teacher")
    for name, tensor in teacher.items():
        same = torch.equal(content["network_weights"][name], tensor)
        assert same == name.startswith("encoder."), name
    load_pretrained_weights(build(architecture(classes=7), seed=9), str(out))

    export_nnunet(path, tmp_path / "again.pth", random_decoder=True)
    again = open_foreign(tmp_path / "again.pth")["network_weights"]
    assert all(torch.equal(again[name], tensor) for name, tensor in content["network_weights"].items())


def test_existing_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out.pth").write_text("keep")
    with pytest.raises(OutputError, match=r"out\.pth exists"):
        export_nnunet(write(tmp_path / "c.safetensors"), tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_text() == "keep"


def test_an_unwritable_folder_is_reported_and_nothing_remains(tmp_path: Path) -> None:
    path = write(tmp_path / "c.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/out\.pth could not be written"):
        export_nnunet(path, tmp_path / "file" / "out.pth")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.safetensors", "file"]
