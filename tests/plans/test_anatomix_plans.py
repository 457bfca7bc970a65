"""Plans for an anatomix U-Net: network, patch, images in [0, 1], and the window of CT."""

import json

import numpy as np
import pytest
from nnunetv2.preprocessing import normalization
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import OptionError, UnsupportedConfigurationError
from nnunet_invariance.networks.architectures.anatomix_unet import NETWORK
from nnunet_invariance.plans.ct_window import CTWindowTo01Normalization
from nnunet_invariance.plans.fit import fit_plans_to_checkpoint
from nnunet_invariance.weights.importers.importing import import_foreign
from tests.helpers.anatomix_files import write_released
from tests.helpers.planned_files import CONFIGURATION, NAME, write_planned
from tests.helpers.small_checkpoints import write


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anatomix")
    write_released(folder / "anatomix.pth")
    return import_foreign(folder / "anatomix.pth")


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A planned data set with one CT channel, whose patch does not fit the U-Net."""
    folder = write_planned(tmp_path, monkeypatch)
    change(folder, normalization_schemes=["CTNormalization"], patch_size=[28, 56, 48], spacing=[4.0, 1.0, 1.0])
    return folder


def change(folder, **changes):
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["configurations"][CONFIGURATION].update(changes)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))


def configuration_of(fitted):
    return json.loads(fitted.path.read_text())["configurations"][CONFIGURATION]


def test_the_copy_has_network_patch_window_and_checkpoint(dataset, checkpoint):
    fitted = fit_plans_to_checkpoint(NAME, checkpoint)
    entry = configuration_of(fitted)
    assert fitted.path.name == "nnUNetPlans_anatomix.json"
    assert fitted.trainer == "AnatomixTrainer"
    assert entry["architecture"]["network_class_name"] == NETWORK
    assert entry["architecture"]["arch_kwargs"]["strides"] == [[1, 1, 1], *[[2, 2, 2]] * 4]
    assert entry["patch_size"] == [32, 48, 48]
    assert entry["normalization_schemes"] == ["CTWindowTo01Normalization"]
    assert entry["data_identifier"] == "nnUNetPlans_anatomix_3d_fullres"
    assert entry["spacing"] == [4.0, 1.0, 1.0]
    assert entry["nnunet_invariance"] == {"seed": 5, "checkpoint": str(checkpoint), "branch": "student"}
    said = "\n".join(fitted.decisions)
    assert "patch_size: [32, 48, 48], the plans had [28, 56, 48]" in said
    assert "WARNING: the weights were trained on isotropic voxels" in said


def test_the_command_prints_the_next_commands(dataset, checkpoint, capsys):
    assert main(["weights", "plan", "778", str(checkpoint)]) == 0
    printed = capsys.readouterr().out
    assert (
        "next: nnUNetv2_preprocess -d 778 -plans_name nnUNetPlans_anatomix -c 3d_fullres, then nnUNetv2_train "
        in printed
    )
    assert "-p nnUNetPlans_anatomix -tr AnatomixTrainer" in printed


def test_frozen_features_keep_the_planned_network(dataset, checkpoint):
    change(dataset, normalization_schemes=["ZScoreNormalization"], patch_size=[32, 32, 32])
    fitted = fit_plans_to_checkpoint(NAME, checkpoint, frozen_features=True)
    entry = configuration_of(fitted)
    assert fitted.path.stem == "nnUNetPlans_anatomix_features"
    assert entry["architecture"]["network_class_name"].endswith("PlainConvUNet")
    assert entry["nnunet_invariance"]["features"] == "anatomix"
    assert fitted.trainer == "MaskGenTrainer"
    assert entry["normalization_schemes"] == ["RescaleTo01Normalization"]


def test_plans_that_do_not_fit_are_refused_and_leave_no_files(dataset, checkpoint, tmp_path):
    plans = json.loads((dataset / "nnUNetPlans.json").read_text())
    strides = [[1, 1, 1], [1, 2, 2], [5, 2, 2]]
    plans["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]["strides"] = strides
    (dataset / "nnUNetPlans.json").write_text(json.dumps(plans))
    with pytest.raises(
        UnsupportedConfigurationError, match=r"no multiple of the planned network's strides \[5, 4, 4\]"
    ):
        fit_plans_to_checkpoint(NAME, checkpoint, frozen_features=True)
    stock = write(tmp_path / "stock.safetensors", teacher=False)
    with pytest.raises(OptionError, match="contains a PlainConvUNet; frozen features are those of an anatomix U-Net"):
        fit_plans_to_checkpoint(NAME, stock, frozen_features=True)
    change(dataset, patch_size=[32, 32])
    with pytest.raises(UnsupportedConfigurationError, match="2-D, anatomix U-Nets are 3-D"):
        fit_plans_to_checkpoint(NAME, checkpoint)
    assert {file.name for file in dataset.glob("*.json")} == {"nnUNetPlans.json", "dataset.json"}


def test_nnunet_finds_the_window_by_its_name():
    folder = normalization.__path__[0]
    found = recursive_find_python_class(folder, "CTWindowTo01Normalization", "nnunetv2.preprocessing.normalization")
    assert found is CTWindowTo01Normalization


@pytest.mark.parametrize(
    ("low", "high", "window"),
    [(-150.0, 300.0, (-450, 450)), (-950.0, 300.0, (-1024, 1024)), (-50.0, 900.0, (-1024, 1024))],
)
def test_the_window_is_narrow_if_it_contains_the_labels(low, high, window):
    image = np.array([[-3000.0, -1024.0, -450.0, 0.0, 450.0, 1024.0, 20000.0]])
    properties = {"percentile_00_5": low, "percentile_99_5": high}
    found = CTWindowTo01Normalization(use_mask_for_norm=False, intensityproperties=properties).run(image.copy())
    wanted = (np.clip(image, *window) - window[0]) / (window[1] - window[0])
    np.testing.assert_allclose(found, wanted, atol=1e-6)
