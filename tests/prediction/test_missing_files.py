"""Cases with missing files: one command, the stock predictor, and the result of images of zeros."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import ImagesFolderError
from nnunet_invariance.nnunet.missing_channels import fill_missing_channels
from nnunet_invariance.prediction import StylePredictor, open_model, predict_folder
from tests.helpers.tiny_modalities import DIFFERENT, write_apart, write_tests
from tests.helpers.tiny_trainers import make_trainer

CPU = {"device": torch.device("cpu"), "use_mirroring": False, "allow_tqdm": False}
CASES = {"small": 1, "no_t1": 0}  # the missing channel


@pytest.fixture(scope="module", params=["PUIRTrainer_scratch_1epoch", "ChannelDropoutTrainer_1epoch"])
def model(modalities, tmp_path_factory, request):
    """Folder of a model with random weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(tmp_path_factory.mktemp("results")))
        trainer = make_trainer(modalities, request.param, seed=3, prior=4)
        trainer.on_train_start()
        trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    return Path(trainer.output_folder_base)


@pytest.fixture(scope="module")
def folders(modalities, tmp_path_factory):
    """The same cases: without the missing files, with zeros, and with -1000 in a mask in their place."""
    root = tmp_path_factory.mktemp("images")
    write_tests(root / "absent")
    for path in (root / "absent").glob("both_*"):
        path.unlink()
    fill_missing_channels(root / "absent", root / "zeros", "779")
    shutil.copytree(root / "zeros", root / "constant")
    for name, channel in CASES.items():
        image = sitk.ReadImage(root / "zeros" / f"{name}_{channel:04d}.nii.gz") - 1000
        sitk.WriteImage(image, root / "constant" / f"{name}_{channel:04d}.nii.gz")
    return root


def stock(model: Path, images: Path, out: Path) -> dict[str, np.ndarray]:
    """Probabilities and labels that nnU-Net's predictor writes for a folder."""
    predictor = nnUNetPredictor(**CPU)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    out.mkdir()
    lists = [sorted(map(str, images.glob(f"{name}_*"))) for name in CASES]
    predictor.predict_from_files_sequential(lists, [str(out / name) for name in CASES], True)
    return written(out)


def written(out: Path) -> dict[str, np.ndarray]:
    return {name: np.load(out / f"{name}.npz")["probabilities"] for name in CASES}


def test_missing_files_and_constants_give_the_result_of_zeros(model, folders, tmp_path):
    expected = stock(model, folders / "zeros", tmp_path / "zeros")
    for name in ("absent", "constant"):
        out = tmp_path / name
        command = ["predict", str(model), "-i", str(folders / name), "-o", str(out), "-device", "cpu"]
        assert main([*command, "--disable_tta", "--workers", "0", "--save_probabilities"]) == 0
        for case, probabilities in written(out).items():
            assert np.array_equal(probabilities, expected[case]), (name, case)
    for case, probabilities in stock(model, folders / "absent", tmp_path / "stock").items():
        assert np.array_equal(probabilities, expected[case]), case


def test_the_plans_beside_the_model_alone_name_the_preprocessor(model, modalities):
    def names(path: Path) -> str:
        return json.loads(path.read_text())["configurations"]["3d_fullres"]["preprocessor_name"]

    assert names(model / "plans.json") == "MissingChannelsPreprocessor"
    assert names(modalities.preprocessed / modalities.name / "nnUNetPlans.json") == "DefaultPreprocessor"


def test_channels_on_different_grids_are_refused(model, tmp_path):
    write_apart(tmp_path / "in")
    with pytest.raises(ImagesFolderError, match=DIFFERENT):
        predict_folder(open_model(StylePredictor(**CPU), model), tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_that_was_not_trained_for_missing_channels_is_named(model, folders, tmp_path, caplog, monkeypatch):
    predictor = open_model(StylePredictor(**CPU), model)
    monkeypatch.setattr(predictor, "predict_from_files_sequential", lambda *arguments: None)
    with caplog.at_level(logging.WARNING):
        predict_folder(predictor, folders / "absent", tmp_path / "out", workers=0)
        assert not caplog.records
        predictor.trainer_name = "BaselineTrainer"
        predict_folder(predictor, folders / "absent", tmp_path / "out", workers=0)
    assert "2 of 2 cases lack channels (no_t1: T1), but BaselineTrainer did not train" in caplog.text
