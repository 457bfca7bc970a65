"""Importer of the released anatomix files: recognition, check of every key, and messages for other variants."""

import sys
from pathlib import Path

import pytest
import torch

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import MissingPackageError, WeightsIncompatibleError, WeightsNotFoundError
from nnunet_invariance.networks.architectures.anatomix_unet import DESIGNS, NETWORK, AnatomixUNet
from nnunet_invariance.weights import hub
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.importers.importing import import_foreign, read_network, recognise
from nnunet_invariance.weights.inspection import inspect
from nnunet_invariance.weights.nnssl_format import names_of
from nnunet_invariance.weights.nnunet_export import export_nnunet
from nnunet_invariance.weights.transfer import load_pretrained
from nnunet_invariance.weights.trusted_architecture import trusted_architecture
from tests.helpers.anatomix_files import ReleasedUNet, released_state, write_released


def vit_state() -> dict[str, torch.Tensor]:
    """Without memory: nnU-Net's PrimusV2 of the released arguments, with what the authors added."""
    from dynamic_network_architectures.architectures.primus import PrimusV2

    with torch.device("meta"):
        network = PrimusV2(
            1, 396, (8, 8, 8), 32, eva_depth=12, eva_numheads=6, input_shape=(128, 128, 128),
            num_register_tokens=8, init_values=0.1, scale_attn_inner=True,
        )  # fmt: skip
        state = dict(network.state_dict())
        state["register_tokens"] = torch.empty(1, 8, 396)
        for block in range(12):
            for norm in ("q_norm", "k_norm"):
                for name in ("weight", "bias"):
                    state[f"eva.blocks.{block}.attn.{norm}.{name}"] = torch.empty(66)
    return state


@pytest.mark.parametrize("variant", DESIGNS)
def test_each_variant_is_recognised_and_read_to_its_last_key(tmp_path, variant):
    state = released_state(variant, device="meta")
    found, network = read_network(tmp_path / "x.pth", state)
    assert found == variant == recognise(tmp_path, {f"_orig_mod.{key}": value for key, value in state.items()})
    assert len(network.state) == len(state)
    assert network.architecture.network_class_name == NETWORK
    assert network.architecture.arch_kwargs["variant"] == variant


@pytest.mark.integration
def test_imported_network_computes_the_same_as_the_release(tmp_path):
    state = write_released(tmp_path / "anatomix.pth", prefix="_orig_mod.")
    checkpoint = load_checkpoint(import_foreign(tmp_path / "anatomix.pth"))
    assert checkpoint.metadata["method"] == "anatomix"
    assert checkpoint.metadata["pretrained"] == ["encoder", "decoder"]
    assert checkpoint.metadata["normalization_schemes"] == ["RescaleTo01Normalization"]
    network = AnatomixUNet(1, 3)
    report = load_pretrained(network, checkpoint, transfer="encoder+decoder", branch="student")
    assert report.coverage == 1
    assert len(report.matched) == 115
    assert not report.missing + report.skipped + report.adapted
    oracle = ReleasedUNet().eval()
    oracle.load_state_dict(state)
    x = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(network.eval().features(x), oracle(x)[65])
        pair = AnatomixUNet(2, 3).eval()
        report = load_pretrained(pair, checkpoint, transfer="encoder+decoder", branch="student")
        assert [entry.rule for entry in report.adapted] == ["input channels 1 -> 2"]
        torch.testing.assert_close(pair.features(x.expand(-1, 2, -1, -1, -1)), oracle(x)[65], atol=2e-4, rtol=1e-3)


def test_the_large_variant_is_refused_by_the_importer_of_the_small_one(tmp_path):
    checkpoint = load_checkpoint(import_foreign(Path(_file(tmp_path, "anatomix"))))
    with torch.device("meta"):
        large = AnatomixUNet(1, 2, variant="anatomix-dev")
    with pytest.raises(WeightsIncompatibleError, match=r"AnatomixUNet 'anatomix', but .* AnatomixUNet 'anatomix-dev'"):
        load_pretrained(large, checkpoint, branch="student")
    with pytest.raises(WeightsIncompatibleError, match=r"is the anatomix U-Net 'anatomix' of 5\.9"):
        import_foreign(_file(tmp_path, "anatomix"), tmp_path / "out.safetensors", importer="anatomix-dev")
    assert not (tmp_path / "out.safetensors").exists()


def _file(folder: Path, variant: str) -> Path:
    write_released(folder / f"{variant}.pth", variant)
    return folder / f"{variant}.pth"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("model.65.weight"), "model.65.weight: not in the file"),
        (lambda state: state.update({"model.65.bias": torch.zeros(16)}), "model.65.bias: not in the U-Net"),
        (
            lambda state: state.update({"model.0.weight": torch.zeros(16, 2, 3, 3, 3)}),
            r"model.0.weight: \[16, 2, 3, 3, 3\] in the file, \[16, 1, 3, 3, 3\] in the U-Net",
        ),
    ],
)
def test_a_key_or_shape_too_many_is_refused(tmp_path, change, said):
    state = released_state("anatomix", device="meta")
    change(state)
    with pytest.raises(WeightsIncompatibleError, match=said):
        read_network(tmp_path / "x.pth", state)


def test_the_earlier_file_of_the_large_variant_is_recognised(tmp_path):
    state = {key: value[:20] for key, value in released_state("anatomix-dev", device="meta").items()}
    with pytest.raises(WeightsIncompatibleError, match=r"20 channels at full resolution[\s\S]*until July 2026"):
        read_network(tmp_path / "x.pth", dict(state))


def test_the_transformer_is_named_and_refused(tmp_path, monkeypatch):
    state = vit_state()
    assert len(state) == 411
    assert sum(v.numel() for k, v in state.items() if "all_modules" not in k) > 26_221_076
    with pytest.raises(WeightsIncompatibleError, match=r"anatomix-dev-vit.*our trainers need an encoder with stages"):
        read_network(tmp_path / "vit.pth", state)
    small = {key: torch.zeros(1) for key in state}
    torch.save(small, tmp_path / "vit.pth")
    info = inspect(tmp_path / "vit.pth")
    assert info.format.startswith("anatomix-dev-vit")
    assert "without stages" in info.remark


def test_the_command_line_imports_and_inspects(tmp_path, capsys):
    file = _file(tmp_path, "anatomix")
    assert main(["weights", "inspect", str(file)]) == 0
    assert "anatomix: the anatomix U-Net 'anatomix' of 5.9 million parameters" in capsys.readouterr().out
    assert main(["weights", "import", "anatomix", str(file)]) == 0
    assert main(["weights", "inspect", str(file.with_suffix(".safetensors"))]) == 0
    assert "AnatomixUNet" in capsys.readouterr().out


@pytest.mark.integration
def test_export_works_for_nnunet_and_is_refused_with_a_reason_for_nnssl(tmp_path):
    checkpoint = import_foreign(_file(tmp_path, "anatomix"))
    export_nnunet(checkpoint, tmp_path / "stock.pth", branch="student")
    weights = torch.load(tmp_path / "stock.pth", weights_only=True)["network_weights"]
    assert weights.keys() == AnatomixUNet(1, 1).state_dict().keys()
    with pytest.raises(WeightsIncompatibleError, match="does not support a AnatomixUNet"):
        names_of(trusted_architecture(load_checkpoint(checkpoint)))


# ---- hub -------------------------------------------------------------------------------------------------------------


def test_a_local_path_does_not_use_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert hub.local_file("a/b.pth") == Path("a/b.pth")
    with pytest.raises(MissingPackageError, match=r"pip install 'huggingface_hub"):
        hub.local_file("hf:owner/name/file.pth")


@pytest.mark.parametrize("name", ["hf:file.pth", "hf:owner/file.pth", "hf:owner/name/", "hf:/a/b"])
def test_an_incomplete_name_is_refused(name):
    with pytest.raises(WeightsNotFoundError, match="expected hf:OWNER/NAME/FILE"):
        hub.local_file(name)


def test_the_file_is_requested_from_the_hub_and_its_error_is_reported(monkeypatch, tmp_path, capsys):
    module = pytest.importorskip("huggingface_hub")
    file = _file(tmp_path, "anatomix")
    asked = []
    monkeypatch.setattr(module, "hf_hub_download", lambda *names: asked.append(names) or str(file))
    monkeypatch.chdir(tmp_path / "..")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["weights", "import", "anatomix", "hf:owner/name/folder/anatomix.pth"]) == 0
    assert asked == [("owner/name", "folder/anatomix.pth")]
    assert (tmp_path / "here/anatomix.safetensors").is_file()

    def offline(*names):
        raise ConnectionError("no route\nsecond line")

    monkeypatch.setattr(module, "hf_hub_download", offline)
    with pytest.raises(WeightsNotFoundError, match=r"ConnectionError: no route\). Check owner"):
        hub.local_file("hf:owner/name/file.pth")
