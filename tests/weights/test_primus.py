"""Primus: the function of dynamic_network_architectures, nnssl's files, and tables for other patch sizes."""

import json

import pytest
import torch
from dynamic_network_architectures.architectures import primus as upstream

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import (
    CheckpointCorruptError,
    OptionError,
    ShapeError,
    UnsupportedConfigurationError,
    WeightsIncompatibleError,
)
from nnunet_invariance.networks.architectures import primus
from nnunet_invariance.networks.architectures.primus import NETWORK, Primus, arch_kwargs
from nnunet_invariance.weights.checkpoint import Checkpoint, load_checkpoint
from nnunet_invariance.weights.importers.importing import import_foreign, recognise
from nnunet_invariance.weights.nnssl_export import export_nnssl
from nnunet_invariance.weights.position_tables import resize_positions
from nnunet_invariance.weights.transfer import can_load, load_pretrained
from tests.helpers.planned_files import CONFIGURATION, NAME, write_planned
from tests.helpers.primus_files import PATCH, TINY, released_network, write_primus


@pytest.fixture
def tiny_size(monkeypatch):
    """A transformer of 24 channels and two blocks under the name T."""
    monkeypatch.setitem(primus.SIZES, "T", TINY)


def tokens_of(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What upstream's transformer says, as a map."""
    down = network.down_projection(x)
    return network.eva(down.flatten(2).transpose(1, 2))[0].transpose(1, 2).view_as(down)


def build(tiny_size, patch=PATCH, channels: int = 1) -> Primus:
    return Primus(channels, 3, **arch_kwargs("T", patch)).eval()


@pytest.mark.parametrize("size", ["S", "B", "M", "L"])
def test_names_and_sizes_are_those_of_nnssl(size):
    with torch.device("meta"):
        ours = Primus(1, 2, **arch_kwargs(size, [16, 16, 16]))
        network = getattr(upstream, f"Primus{size}")(1, 2, (8, 8, 8), (16, 16, 16))
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items() if name != "mask_token"}
    found = {name.split(".", 1)[1]: tensor.shape for name, tensor in ours.state_dict().items()}
    assert found == wanted


def test_an_imported_network_computes_the_same_as_the_original(tmp_path, tiny_size):
    source = released_network()
    file = write_primus(tmp_path / "a.pth", source)
    assert recognise(file, torch.load(file, weights_only=True)) == "nnssl"
    checkpoint = load_checkpoint(import_foreign(file))
    metadata = checkpoint.metadata
    assert metadata["architecture"]["network_class_name"] == NETWORK
    assert metadata["pretrained"] == ["encoder"]
    left = {name.split(".")[0] for name in metadata["options"]["left_out"]}
    assert left == {"mask_token", "up_projection"}
    ours = build(tiny_size)
    report = load_pretrained(ours, checkpoint, branch="student")
    assert report.coverage == 1
    assert not report.adapted
    x = torch.randn(2, 1, *PATCH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(ours.encoder(x)[1], tokens_of(source, x), atol=1e-5)
        logits = ours(x)
        ours.decoder.deep_supervision = True
        assert torch.equal(ours(x)[0], logits)
    for name, tensor in source.eva.state_dict().items():
        assert torch.equal(ours.encoder.eva.state_dict()[name], tensor), name


def test_positions_are_interpolated_as_a_slow_loop_does():
    table = torch.randn(1, 2 * 3 * 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, wanted = (2, 3, 4), (3, 3, 2)
    grid = table[0].view(*found, 5)
    expected = torch.zeros(*wanted, 5, dtype=torch.float64)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in wanted)).tolist():
        corners = [((), 1.0)]
        for axis, index in enumerate(place):
            centre = min(max((index + 0.5) * found[axis] / wanted[axis] - 0.5, 0), found[axis] - 1)
            low = int(centre)
            high = min(low + 1, found[axis] - 1)
            share = centre - low
            corners = [((*c, i), w * s) for c, w in corners for i, s in ((low, 1 - share), (high, share))]
        expected[tuple(place)] = sum(weight * grid[corner] for corner, weight in corners)
    assert torch.allclose(resize_positions(table, found, wanted).double(), expected.view(1, -1, 5), atol=1e-6)
    assert torch.equal(resize_positions(table.float(), found, found), table.float())


@pytest.mark.parametrize("patch", [[24, 24, 24], [32, 24, 16]], ids=["more cells", "as many cells elsewhere"])
def test_another_patch_gets_interpolated_positions_and_other_channels_their_share(tmp_path, tiny_size, patch):
    source = released_network()
    checkpoint = load_checkpoint(import_foreign(write_primus(tmp_path / "a.pth", source)))
    ours = build(tiny_size, patch, channels=2)
    report = load_pretrained(ours, checkpoint, branch="student")
    assert report.coverage == 1
    grid = [size // 8 for size in patch]
    assert {entry.rule for entry in report.adapted} == {"input channels 1 -> 2", f"positions [2, 3, 4] -> {grid}"}
    assert torch.equal(ours.encoder.eva.pos_embed, resize_positions(source.eva.pos_embed, (2, 3, 4), grid))
    x = torch.randn(1, 1, *patch, dtype=torch.float64)
    with torch.no_grad():
        embedded = ours.encoder.down_projection.double()(x.expand(-1, 2, -1, -1, -1))
        assert torch.allclose(embedded, source.down_projection.double()(x), atol=1e-6)


def test_a_class_token_is_dropped_with_its_position(tmp_path, tiny_size):
    source = released_network()
    state = dict(source.state_dict())
    state["eva.cls_token"] = torch.ones(1, 1, 24)
    state["eva.pos_embed"] = torch.cat((torch.full((1, 1, 24), 9.0), state["eva.pos_embed"]), 1)
    checkpoint = load_checkpoint(import_foreign(write_primus(tmp_path / "a.pth", source, state=state)))
    assert torch.equal(checkpoint.section("network")["encoder.eva.pos_embed"], source.eva.pos_embed)
    assert "encoder.eva.cls_token" in checkpoint.metadata["options"]["left_out"]


def test_an_encoder_below_a_methods_own_name_is_found(tmp_path, tiny_size):
    source = released_network()
    state = {f"student.{name}": tensor for name, tensor in source.state_dict().items()}
    file = write_primus(tmp_path / "a.pth", source, state=state, key_to_encoder="student.eva")
    assert load_pretrained(build(tiny_size), load_checkpoint(import_foreign(file)), branch="student").coverage == 1


# ---- refused ---------------------------------------------------------------------------------------------------------


def test_files_that_contradict_their_plans_are_refused(tmp_path, tiny_size):
    source = released_network()
    state = {name: tensor for name, tensor in source.state_dict().items() if name != "eva.blocks.1.gamma_1"}
    with pytest.raises(WeightsIncompatibleError, match=r"encoder\.eva\.blocks\.1\.gamma_1: not in the file"):
        import_foreign(write_primus(tmp_path / "a.pth", source, state=state))
    with pytest.raises(WeightsIncompatibleError, match=r"pos_embed: \[1, 24, 24\] in the file, \[1, 8, 24\]"):
        import_foreign(write_primus(tmp_path / "b.pth", source, patch=[16, 16, 16]))
    with pytest.raises(WeightsIncompatibleError, match="contains a PrimusV2M, which our trainers cannot use"):
        import_foreign(write_primus(tmp_path / "c.pth", source, size="V2M"))
    with pytest.raises(CheckpointCorruptError, match=r"\[16, 16, 20\].*multiple of 8"):
        import_foreign(write_primus(tmp_path / "d.pth", source, patch=[16, 16, 20]))
    assert not list(tmp_path.glob("*.safetensors"))


def test_impossible_networks_are_refused(tiny_size):
    with pytest.raises(OptionError, match=r"no Primus 'Q'\. Take one of S, B, M, L"):
        Primus(1, 1, "Q", PATCH)
    with pytest.raises(UnsupportedConfigurationError, match="expected 2 and"):
        Primus(1, 1, **{**arch_kwargs("T", PATCH), "strides": [[1] * 3, [4] * 3]})
    with pytest.raises(ShapeError, match=r"with the patch \[16, 24, 32\]"):
        build(tiny_size)(torch.zeros(1, 1, 16, 16, 16))


def test_other_sizes_and_broken_tables_do_not_fit(tmp_path, tiny_size, monkeypatch):
    checkpoint = load_checkpoint(import_foreign(write_primus(tmp_path / "a.pth", released_network())))
    monkeypatch.setitem(primus.SIZES, "U", (48, 2, 2))
    assert not can_load(Primus(1, 1, **arch_kwargs("U", PATCH)), checkpoint, branch="student")
    kwargs = {**checkpoint.metadata["architecture"]["arch_kwargs"], "input_shape": [16, 16, 16]}
    metadata = {**checkpoint.metadata, "architecture": {**checkpoint.metadata["architecture"], "arch_kwargs": kwargs}}
    lying = Checkpoint(checkpoint.path, metadata, checkpoint.tensors)
    with pytest.raises(CheckpointCorruptError, match=r"patch \[16, 16, 16\] has \[2, 2, 2\] cells"):
        load_pretrained(build(tiny_size), lying, branch="student")


def test_export_to_nnssl_is_refused_with_a_reason(tmp_path, tiny_size):
    out = import_foreign(write_primus(tmp_path / "a.pth", released_network()))
    with pytest.raises(WeightsIncompatibleError, match="does not support a Primus"):
        export_nnssl(out, tmp_path / "out.pth", branch="student")
    assert not (tmp_path / "out.pth").exists()


# ---- plans -----------------------------------------------------------------------------------------------------------


def test_plans_keep_the_file_or_adapt_it_to_another_patch(tmp_path, monkeypatch, capsys, tiny_size):
    folder = write_planned(tmp_path, monkeypatch)
    file = write_primus(tmp_path / "a.pth", released_network(), recommended_downstream_patchsize=[32, 32, 32])
    out = import_foreign(file)
    assert main(["weights", "plan", NAME, str(out), "--keep", "checkpoint", "--name", "Theirs"]) == 0
    printed = capsys.readouterr().out
    assert "adapted: positions [2, 3, 4] -> [4, 4, 4] (1 tensor)" in printed
    assert "encoder: 100.00% from the file" in printed
    plans = json.loads((folder / "Theirs.json").read_text())
    entry = plans["configurations"][CONFIGURATION]
    assert entry["architecture"]["arch_kwargs"]["input_shape"] == entry["patch_size"] == [32, 32, 32]
    entry["patch_size"] = entry["architecture"]["arch_kwargs"]["input_shape"] = [16, 32, 32]
    (folder / "Small.json").write_text(json.dumps({**plans, "plans_name": "Small"}))
    assert main(["weights", "plan", NAME, str(out), "-p", "Small", "--name", "Both"]) == 0
    printed = capsys.readouterr().out
    assert "architecture: Primus, the same in file and plans" in printed
    assert "adapted: positions [2, 3, 4] -> [2, 4, 4] (1 tensor)" in printed
