"""Model folders that are damaged or hostile, and images that are damaged: named, and no code of a file runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import (
    CheckpointCorruptError,
    DamagedFileError,
    UnsafeCheckpointError,
    UnsupportedConfigurationError,
    VolumeError,
    WeightsIncompatibleError,
)
from nnunet_invariance.prediction import StylePredictor, adapt_model, open_model, predict_folder
from tests.helpers.tiny_models import CPU

FILE = "fold_0/checkpoint_final.pth"


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def rewritten(model: Path, **changes) -> None:
    """Save the checkpoint again with other entries."""
    content = torch.load(model / FILE, weights_only=True)
    torch.save({**content, **changes}, model / FILE)


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_predictor_is_that_of_nnunets_own_loader(tiny_model):
    stock, ours = nnUNetPredictor(**CPU), open_model(nnUNetPredictor(**CPU), tiny_model)
    stock.initialize_from_trained_model_folder(str(tiny_model), (0,), "checkpoint_final.pth")
    assert stock.network.state_dict().keys() == ours.network.state_dict().keys()
    for name, value in stock.network.state_dict().items():
        assert torch.equal(value, ours.network.state_dict()[name])
    for name in ("trainer_name", "allowed_mirroring_axes", "dataset_json"):
        assert getattr(stock, name) == getattr(ours, name)


def test_code_in_a_checkpoint_does_not_run(model, tmp_path):
    rewritten(model, logging=Planted(tmp_path / "planted"))
    with pytest.raises(UnsafeCheckpointError, match="was not opened"):
        open_model(StylePredictor(**CPU), model)
    assert not (tmp_path / "planted").exists()


def test_a_network_that_the_plans_name_is_not_called_unless_it_is_known(model, tmp_path, monkeypatch):
    plans = json.loads((model / "plans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "pathlib.Path.touch"
    (model / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(WeightsIncompatibleError, match=r"plans.json contains a touch, which our trainers cannot use"):
        open_model(StylePredictor(**CPU), model)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"trainer_name": 3}, CheckpointCorruptError, "trainer_name is 3"),
        ({"trainer_name": "torch"}, UnsupportedConfigurationError, "the trainer 'torch', which is not installed"),
        ({"network_weights": {"a": 1}}, CheckpointCorruptError, "a value that is no tensor"),
        ({"network_weights": {"a": torch.zeros(1)}}, CheckpointCorruptError, r"does not fit the network of plans.json"),
    ],
)
def test_what_is_no_checkpoint_of_the_model_is_named(model, changes, error, message):
    rewritten(model, **changes)
    with pytest.raises(error, match=message):
        open_model(StylePredictor(**CPU), model)


def test_damaged_files_of_a_model_are_named(model, tiny, tmp_path, capsys):
    images = str(tiny.raw / tiny.name / "imagesTs")
    command = ["predict", str(model), "-i", images, "-o", str(tmp_path / "out"), "-device", "cpu"]
    (model / FILE).write_bytes((model / FILE).read_bytes()[:3000])
    assert main(command) == 2
    assert f"{model / FILE} cannot be read as a checkpoint" in capsys.readouterr().err
    (model / "plans.json").write_text('{"a":')
    with pytest.raises(DamagedFileError, match=r"plans.json is not a valid JSON file"):
        open_model(StylePredictor(**CPU), model)
    assert not (tmp_path / "out").exists()


def test_a_truncated_image_is_named_and_nothing_is_predicted(tiny_model, tiny, tmp_path):
    source = next((tiny.raw / tiny.name / "imagesTs").iterdir())
    images = tmp_path / "images"
    images.mkdir()
    (images / source.name).write_bytes(source.read_bytes()[:-200])
    predictor = open_model(StylePredictor(**CPU), tiny_model)
    with pytest.raises(VolumeError, match=rf"{source.name} cannot be read as an image"):
        predict_folder(predictor, images, tmp_path / "out")
    with pytest.raises(VolumeError, match=rf"{source.name} cannot be read as an image"):
        adapt_model(tiny_model, images, tmp_path / "adapted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
