"""`weights plan`: keeping the plans or the checkpoint, and the block for nnU-Net's own fine-tuning."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.networks.architectures.resnet3d import ResNet3dNetwork
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.plans.fit import FittedPlans, fit_plans_to_checkpoint
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.importers.importing import import_foreign
from nnunet_invariance.weights.transfer import load_pretrained
from tests.helpers.foreign_checkpoints import write_foreign
from tests.helpers.planned_files import BASE, CONFIGURATION, NAME, write_planned
from tests.helpers.small_checkpoints import FLAT, FULL, architecture, with_kernels, write


def configuration_of(fitted: FittedPlans) -> dict[str, Any]:
    return json.loads(fitted.path.read_text())["configurations"][CONFIGURATION]


def base_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / f"{BASE}.json").read_text())["configurations"][CONFIGURATION]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_planned(tmp_path, monkeypatch)


# ---- keep plans ------------------------------------------------------------------------------------------------------


def test_the_shared_stages_of_a_deeper_file_are_used(planned, tmp_path):
    file = write(tmp_path / "c.safetensors", architecture(features=(4, 8, 16, 16)))
    fitted = fit_plans_to_checkpoint(NAME, file)
    text = "\n".join(fitted.decisions)
    assert "stages: 3 as planned, the file has 4; the first 3 are shared" in text
    assert "encoder: 100.00% from the file" in text
    assert configuration_of(fitted)["architecture"] == base_of(planned)["architecture"]


def test_a_shallower_file_needs_min_coverage(planned, tmp_path):
    file = write(tmp_path / "c.safetensors", architecture(features=(4, 8)))
    with pytest.raises(WeightsIncompatibleError, match=r"fills 2 of 3 encoder stages"):
        fit_plans_to_checkpoint(NAME, file)
    assert len(list(planned.glob("*.json"))) == 2
    fitted = fit_plans_to_checkpoint(NAME, file, min_coverage=0.1)
    assert configuration_of(fitted)["nnunet_invariance"]["min_coverage"] == 0.1


def test_a_network_that_no_trainer_uses_is_refused(planned, tmp_path):
    described = {
        "network_class_name": f"{ResNet3dNetwork.__module__}.ResNet3dNetwork",
        "arch_kwargs": {},
        "_kw_requires_import": [],
    }
    file = write(tmp_path / "c.safetensors", architecture={**architecture().to_dict(), **described}, method="sam")
    with pytest.raises(WeightsIncompatibleError, match="contains a ResNet3dNetwork, which our trainers cannot use"):
        fit_plans_to_checkpoint(NAME, file)


def test_adapted_kernels_are_reported(tmp_path, monkeypatch):
    write_planned(tmp_path, monkeypatch, with_kernels(architecture(), [FLAT, FULL, FULL]))
    fitted = fit_plans_to_checkpoint(NAME, write(tmp_path / "c.safetensors"))
    assert "adapted: kernel axis 0: 3 -> 1, sum over the taps (1 tensor)" in fitted.decisions


def test_stages_of_another_width_are_refused_unless_min_coverage_allows_them(planned, tmp_path):
    file = write(tmp_path / "c.safetensors", architecture(features=(4, 8, 12)))
    with pytest.raises(WeightsIncompatibleError, match="stage 2: 12 in the file, 16 in the plans"):
        fit_plans_to_checkpoint(NAME, file)
    fitted = fit_plans_to_checkpoint(NAME, file, min_coverage=0.05)
    assert "features_per_stage, stage 2: 12 in the file, 16 in the plans" in fitted.decisions


# ---- keep checkpoint -------------------------------------------------------------------------------------------------


def test_a_copy_with_the_files_values_has_its_own_data_identifier(planned, tmp_path):
    theirs = architecture("ResidualEncoderUNet", features=(4, 8, 12, 12))
    file = write(
        tmp_path / "c.safetensors", theirs, spacing=[0.5, 1.0, 1.5], patch_size=[16, 24, 32],
        normalization_schemes=["RescaleTo01Normalization"],
    )  # fmt: skip
    fitted = fit_plans_to_checkpoint(NAME, file, keep="checkpoint", new_plans_name="theirs")
    found, base = configuration_of(fitted), base_of(planned)
    assert found["architecture"]["network_class_name"].endswith(".ResidualEncoderUNet")
    assert found["architecture"]["arch_kwargs"] == theirs.arch_kwargs
    assert found["spacing"] == [0.5, 1.0, 1.5]
    assert found["patch_size"] == [16, 24, 32]
    assert found["normalization_schemes"] == ["RescaleTo01Normalization"]
    assert found["data_identifier"] == "theirs_3d_fullres"
    assert found["batch_size"] == base["batch_size"]
    text = "\n".join(fitted.decisions)
    assert "spacing: [0.5, 1.0, 1.5], the file's value; the plans had [1.0, 1.0, 1.0]" in text
    assert "batch size: as planned" in text
    network = Architecture.from_plans(found["architecture"], 1, 2).build()
    assert load_pretrained(network, load_checkpoint(file)).coverage == 1


def test_a_copy_with_the_same_preprocessing_uses_the_same_data(planned, tmp_path):
    file = write(tmp_path / "c.safetensors", architecture(features=(4, 8, 12)), patch_size=[16, 16, 16])
    fitted = fit_plans_to_checkpoint(NAME, file, keep="checkpoint")
    assert configuration_of(fitted)["data_identifier"] == base_of(planned)["data_identifier"]


@pytest.mark.parametrize(
    ("planned_as", "changes", "said"),
    [
        (
            architecture(dimensions=2),
            {"patch_size": [32, 32], "spacing": [1.0, 1.0]},
            "2-D in the file, 3-D in the plans",
        ),
        (architecture(), {"patch_size": [30, 32, 32]}, r"\[30, 32, 32\] in the file, not a multiple"),
        (
            architecture(channels=2),
            {"normalization_schemes": ["ZScoreNormalization", "CTNormalization"]},
            "does not say how 1 channels are normalised",
        ),
    ],
)
def test_files_that_do_not_fit_the_data_set_are_refused(planned, tmp_path, planned_as, changes, said):
    file = write(tmp_path / "c.safetensors", planned_as, **changes)
    with pytest.raises(WeightsIncompatibleError, match=said):
        fit_plans_to_checkpoint(NAME, file, keep="checkpoint")
    assert len(list(planned.glob("*.json"))) == 2


def test_only_nnunets_network_classes_are_imported_from_a_header(planned, tmp_path):
    hostile = architecture()
    entry = {**hostile.to_dict(), "network_class_name": "os.system"}
    file = write(tmp_path / "c.safetensors", hostile, architecture=entry)
    with pytest.raises(WeightsIncompatibleError, match="contains a system"):
        fit_plans_to_checkpoint(NAME, file, keep="checkpoint")


# ---- upstream --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["plans", "checkpoint"])
def test_the_block_for_nnunets_fine_tuning_has_its_keys(planned, tmp_path, keep):
    file = write(tmp_path / "c.safetensors", architecture(channels=2))
    fitted = fit_plans_to_checkpoint(NAME, file, keep=keep)
    info = json.loads(fitted.path.read_text())["pretrain_info"]
    assert info.keys() == {
        "checkpoint_path", "checkpoint_name", "key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe",
        "pt_num_in_channels", "pt_used_patchsize", "pt_recommended_downstream_patchsize", "citations",
    }  # fmt: skip
    assert info["key_to_encoder"] == "encoder.stages"
    assert info["key_to_lpe"] is None
    assert info["pt_num_in_channels"] == 2
    assert info["pt_used_patchsize"] == [32, 32, 32]
    assert any(f"weights export {file} {info['checkpoint_path']} --format nnssl" in line for line in fitted.decisions)


# ---- an imported file, from end to end -------------------------------------------------------------------------------


def test_an_imported_file_gives_plans_for_the_transfer_trainer(planned, tmp_path, capsys):
    write_foreign("nnssl", tmp_path / "a.pth", architecture())
    file = import_foreign(tmp_path / "a.pth")
    command = ["weights", "plan", "778", str(file), "--keep", "checkpoint", "--name", "theirs"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "-p theirs -tr TransferTrainer" in out
    block = json.loads((planned / "theirs.json").read_text())["configurations"][CONFIGURATION]["nnunet_invariance"]
    assert block == {"seed": 5, "checkpoint": str(file), "branch": "student"}


def test_the_planned_spacing_is_kept_if_the_file_has_none(planned, tmp_path):
    file = write(tmp_path / "c.safetensors", spacing=None)
    fitted = fit_plans_to_checkpoint(NAME, file, keep="checkpoint")
    assert configuration_of(fitted)["spacing"] == [1.0, 1.0, 1.0]
    assert torch.tensor(base_of(planned)["spacing"]).eq(1).all()
