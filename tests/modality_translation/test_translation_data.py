"""What `translate train` and `pretrain puir` ask of a data set, and what is measured on its raw training images."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_invariance.errors import DatasetNotFoundError, ImagesFolderError, UnsupportedConfigurationError
from nnunet_invariance.modality_translation.intensities import read_intensities
from nnunet_invariance.modality_translation.train import train_translator
from nnunet_invariance.modality_translation.translator import load_translator
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from tests.helpers.pretraining_runs import run_pretraining
from tests.helpers.tiny_dataset import cut_down
from tests.helpers.tiny_modalities import MISSING

CONFIGURATION = "3d_fullres"


@pytest.fixture
def raw(modalities, tmp_path, monkeypatch) -> Path:
    """A copy of the raw data set, to be changed; results go beside it."""
    for tree in ("raw", "results"):
        monkeypatch.setenv(f"nnUNet_{tree}", str(tmp_path / tree))
    return Path(shutil.copytree(modalities.raw / modalities.name, tmp_path / "raw" / modalities.name))


@pytest.fixture
def untrained(monkeypatch, tmp_path) -> Path:
    """Where `translate train` leaves the intensities, without a training."""
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "checkpoint"
    monkeypatch.setattr("nnunet_invariance.modality_translation.train.pretrain", lambda *_, **__: path)
    return path.parent


def pixels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.parametrize("test_images", [[], ["t_0001.nii.gz"]])
def test_test_images_are_not_looked_at(modalities, raw, untrained, test_images):
    (raw / "imagesTs").mkdir()
    for name in test_images:
        (raw / "imagesTs" / name).touch()
    assert train_translator(open_planned_dataset(modalities.name, CONFIGURATION), "cpu", initial_weights="none")
    assert [i.channel for i in read_intensities(untrained)] == ["T1", "CT"]


def test_the_background_is_measured_where_the_crop_ends(modalities, raw, untrained):
    files = {
        c: [raw / f"imagesTr/case_{i:03d}_{c:04d}.nii.gz" for i in range(6) if MISSING.get(i) != c] for c in (0, 1)
    }
    for paths in files.values():  # zeros around the first case: there the crop ends
        image = pixels(paths[0])
        image[:3] = 0
        sitk.WriteImage(sitk.GetImageFromArray(image), str(paths[0]))
    train_translator(open_planned_dataset(modalities.name, CONFIGURATION), "cpu", initial_weights="none")
    for channel, intensities in enumerate(read_intensities(untrained)):
        lowest = sorted([0.0, *(pixels(path).min() for path in files[channel][1:])])
        assert intensities.background == pytest.approx(lowest[(len(lowest) - 1) // 2])
    assert intensities.background < -500  # CT: air


def test_raw_images_that_are_gone_are_named(modalities, raw, untrained):
    shutil.rmtree(raw / "imagesTr")
    with pytest.raises(DatasetNotFoundError, match=r"No preprocessed case .* in nnUNet_raw"):
        train_translator(open_planned_dataset(modalities.name, CONFIGURATION), "cpu", initial_weights="none")


def test_training_images_on_different_grids_are_refused(modalities, raw, untrained, tmp_path):
    path = raw / "imagesTr" / "case_001_0001.nii.gz"
    image = sitk.ReadImage(str(path))
    image.SetOrigin((0.0, 5.0, 0.0))
    sitk.WriteImage(image, str(path))
    with pytest.raises(ImagesFolderError, match=r"case_001_0001\.nii\.gz has the origin .*resample"):
        run_pretraining("puir", modalities.name, CONFIGURATION, device="cpu")
    with pytest.raises(ImagesFolderError, match=r"case_001_0001\.nii\.gz has the origin .*resample"):
        train_translator(open_planned_dataset(modalities.name, CONFIGURATION), "cpu", initial_weights="none")
    assert not (tmp_path / "results").exists()
    assert not list(untrained.iterdir())


def test_other_networks_and_channels_of_one_name_are_refused(modalities, raw):
    plans = cut_down(modalities.plans, "FormerPlans")
    plans["configurations"][CONFIGURATION]["architecture"]["network_class_name"] = "networks.nnformer.NNFormerUNet"
    (modalities.preprocessed / modalities.name / "FormerPlans.json").write_text(json.dumps(plans))
    text = "names the network NNFormerUNet, but {} takes PlainConvUNet and ResidualEncoderUNet. Plan with"
    with pytest.raises(UnsupportedConfigurationError, match=text.format("puir")):
        run_pretraining("puir", modalities.name, CONFIGURATION, "FormerPlans", device="cpu")
    planned = open_planned_dataset(modalities.name, CONFIGURATION, "FormerPlans")
    with pytest.raises(UnsupportedConfigurationError, match=text.format("modality translation")):
        train_translator(planned, "cpu")
    planned = open_planned_dataset(modalities.name, CONFIGURATION)
    planned = replace(planned, dataset_json={**planned.dataset_json, "channel_names": {"0": "T1", "1": "T1"}})
    with pytest.raises(
        UnsupportedConfigurationError, match=r"channels T1, T1, .*Give each channel its own name in .*json"
    ):
        train_translator(planned, "cpu")


def test_prediction_says_at_once_what_no_training_could_change(tiny, modalities):
    with pytest.raises(UnsupportedConfigurationError, match=r"needs at least 2\. Use a dataset with more channels"):
        load_translator(open_planned_dataset(tiny.name, CONFIGURATION), device="cpu")
    with pytest.raises(UnsupportedConfigurationError, match="modality translation needs 3-D plans"):
        load_translator(open_planned_dataset(modalities.name, "2d"), device="cpu")
