"""Contract of the importers: each recognises its own files only, imports them bit by bit and refuses gaps."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import InvarianceError, WeightsIncompatibleError
from nnunet_invariance.networks.architectures import primus
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.registry import ANY_METHOD
from nnunet_invariance.weights import hub
from nnunet_invariance.weights.checkpoint import load_checkpoint, tensor_bytes
from nnunet_invariance.weights.foreign import open_foreign
from nnunet_invariance.weights.importers.importing import import_foreign, recognise
from nnunet_invariance.weights.importers.registry import IMPORTERS, get_importer
from nnunet_invariance.weights.model_card import export_card
from nnunet_invariance.weights.transfer import check_method, load_pretrained
from nnunet_invariance.weights.transfer_report import ENCODER
from tests.helpers.anatomix_files import write_released
from tests.helpers.foreign_checkpoints import FILES as PLANNED
from tests.helpers.foreign_checkpoints import write_foreign
from tests.helpers.nnformer_files import released_state as released_alice
from tests.helpers.nnformer_files import write_student
from tests.helpers.planned_files import NAME, write_planned
from tests.helpers.primus_files import released_network as primus_network
from tests.helpers.primus_files import write_primus
from tests.helpers.sam_files import released_state as released_sam
from tests.helpers.small_checkpoints import NETWORKS, architecture, write
from tests.helpers.swin_files import MONAI, VOCO, released_puir, save

#: Importer and architecture, and a function that writes such a file.
CELLS: dict[tuple[str, str], Callable[[Path], object]] = {
    **{
        (source, network): lambda path, source=source, network=network: write_foreign(
            source, path, architecture(network)
        )
        for source in PLANNED
        for network in NETWORKS
    },
    ("alice", "NNFormerUNet"): lambda path: write_student(path, released_alice()),
    ("anatomix", "AnatomixUNet"): write_released,
    ("sam", "ResNet3dNetwork"): lambda path: save(released_sam(), path),
    ("puir-swin", "PUIRSwinUNETR"): lambda path: save(released_puir(), path),
    ("monai-swin", "SwinUNETR"): lambda path: save(MONAI["model_swinvit"](), path),
    ("voco", "SwinUNETR"): lambda path: save(VOCO["backbone"](), path),
    ("nnssl", "Primus"): lambda path: write_primus(path, primus_network()),
}
NEEDS_MONAI = {"puir-swin", "monai-swin", "voco"}
HAS_MONAI = importlib.util.find_spec("monai") is not None
PARAMETERS = [
    pytest.param(*cell, id="-".join(cell), marks=[] if HAS_MONAI or cell[0] not in NEEDS_MONAI else pytest.mark.skip)
    for cell in CELLS
]
#: The importer of "anatomix" at 94 million parameters, and an importer that refuses every file.
ELSEWHERE = {"anatomix-dev", "anatomix-dev-vit"}
#: Formats with all keys of another format; the more specific importer comes first.
EXTENDS = {"nnssl": {"nnunet"}, "voco": {"monai-swin"}}
#: Importers of releases of a method, whose trainer may load the files.
METHODS = {"alice": "alice", "anatomix": "anatomix", "sam": "sam"}


@pytest.fixture(autouse=True)
def small_primus(monkeypatch):
    monkeypatch.setitem(primus.SIZES, "T", (24, 2, 2))


def plans_of(source: str, path: Path) -> dict:
    """The plans beside an encoder without metadata."""
    return {"plans": json.loads(path.with_suffix(".json").read_text())} if source == "encoder" else {}


def test_every_importer_is_covered():
    assert {source for source, _ in CELLS} | ELSEWHERE == set(IMPORTERS)


def without_one_of_the_encoder(content: dict, first: dict) -> None:
    """Take one tensor of the encoder out, under all of its names."""
    boxes = [box for box in (content, *content.values()) if isinstance(box, dict)]
    state = next(box for box in boxes if sum(isinstance(v, torch.Tensor) for v in box.values()) > 10)
    victims = [t for name, t in first.items() if name.startswith(ENCODER) and t.is_floating_point() and t.numel() > 8]
    for victim in victims:
        same = [k for k, v in state.items() if isinstance(v, torch.Tensor) and torch.equal(v, victim)]
        if same and not any(key.endswith(("model.0.weight", "conv1.conv.weight")) for key in same):
            for key in same:
                del state[key]
            return
    raise AssertionError("no tensor of the encoder stands in the file as it is")


@pytest.mark.integration
@pytest.mark.parametrize(("source", "network"), PARAMETERS)
def test_files_are_imported_bit_by_bit_and_refused_with_a_gap(tmp_path, source, network):
    file = tmp_path / "a.pth"
    CELLS[source, network](file)
    content = open_foreign(file)
    assert recognise(file, content) == source
    recognised = {name for name in IMPORTERS if get_importer(name).recognises(content)}
    assert recognised - {source} <= EXTENDS.get(source, set())
    checkpoint = load_checkpoint(import_foreign(file, configuration="cfg", **plans_of(source, file)))
    assert checkpoint.metadata["method"] == METHODS.get(source, f"import:{source}")
    entry = checkpoint.metadata["architecture"]
    assert entry["network_class_name"].rsplit(".", 1)[-1] == network
    ours = Architecture.from_plans(entry, entry["input_channels"], 2).build()
    report = load_pretrained(ours, checkpoint, branch="student")
    assert report.coverage == 1
    assert not report.adapted
    card = load_checkpoint(export_card(checkpoint.path, tmp_path / "card", "student") / "model.safetensors")
    first = checkpoint.section("network")
    assert card.section("network").keys() == first.keys()
    assert all(tensor_bytes(tensor) == tensor_bytes(first[name]) for name, tensor in card.section("network").items())

    checkpoint.path.unlink()
    content = open_foreign(file)
    without_one_of_the_encoder(content, first)
    torch.save(content, file)
    with pytest.raises(InvarianceError, match=r"not in the file|cannot be read|cannot be imported|cannot be used"):
        import_foreign(file, configuration="cfg", **plans_of(source, file))
    assert not checkpoint.path.exists()


def test_a_trainer_of_a_method_with_the_name_of_an_importer_does_not_accept_its_files(tmp_path):
    write_foreign("nnssl", tmp_path / "a.pth", architecture())
    checkpoint = load_checkpoint(import_foreign(tmp_path / "a.pth"))
    with pytest.raises(WeightsIncompatibleError, match=r"'import:nnssl', but this trainer needs 'nnssl'.*Transfer"):
        check_method(checkpoint, "nnssl")
    check_method(checkpoint, ANY_METHOD)


def test_two_dimensional_files_fit_two_dimensional_plans_only(tmp_path, monkeypatch, capsys):
    write_planned(tmp_path, monkeypatch)
    write_foreign("nnssl", tmp_path / "flat.pth", architecture(dimensions=2))
    flat = import_foreign(tmp_path / "flat.pth")
    for keep in ("plans", "checkpoint"):
        assert main(["weights", "plan", NAME, str(flat), "--keep", keep]) == 2
        assert "2-D" in capsys.readouterr().err
    with pytest.raises(WeightsIncompatibleError, match=r"2-D PlainConvUNet.*3-D PlainConvUNet"):
        load_pretrained(architecture().build(), load_checkpoint(flat), branch="student")


def test_plans_for_a_file_of_the_hub(tmp_path, monkeypatch, capsys):
    folder = write_planned(tmp_path, monkeypatch)
    file = write(tmp_path / "ours.safetensors", method="alice")
    monkeypatch.setattr(hub, "local_file", lambda name: file if str(name) == "hf:owner/name/a.safetensors" else name)
    assert main(["weights", "plan", NAME, "hf:owner/name/a.safetensors", "--name", "FromHub"]) == 0
    plans = json.loads((folder / "FromHub.json").read_text())
    block = plans["configurations"]["3d_fullres"]["nnunet_invariance"]
    assert block["checkpoint"] == str(file)
    capsys.readouterr()
    assert main(["weights", "plan", NAME, "hf:owner/name"]) == 2


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_error_of_a_foreign_file_names_the_import_command(tmp_path, monkeypatch, capsys, suffix):
    write_planned(tmp_path, monkeypatch)
    file = tmp_path / f"a{suffix}"
    write_foreign("nnssl", file, architecture()) if suffix == ".pth" else save_file({"a": torch.zeros(1)}, file)
    assert main(["weights", "plan", NAME, str(file)]) == 2
    assert "weights import" in capsys.readouterr().err
