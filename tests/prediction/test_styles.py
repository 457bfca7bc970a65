"""Prediction with a mean over styles, against the loop that its equation says."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import ImagesFolderError, WeightsNotFoundError
from nnunet_invariance.prediction import StylePredictor, open_model, predict_folder
from tests.helpers.tiny_models import CPU


@pytest.fixture
def image():
    """A preprocessed image (C, Z, Y, X)."""
    return torch.randn(1, 34, 32, 36)


def predicted(model, image, **options):
    return open_model(StylePredictor(**options, **CPU), model).predict_logits_from_preprocessed_data(image)


def test_without_styles_it_is_the_stock_prediction(tiny_model, image):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    stock = open_model(nnUNetPredictor(**CPU), tiny_model).predict_logits_from_preprocessed_data(image)
    assert torch.equal(predicted(tiny_model, image), stock)


def test_the_probabilities_are_the_mean_over_image_and_styles(tiny_model, image):
    predictor = open_model(StylePredictor(styles=2, **CPU), tiny_model)
    versions = [image, *predictor.styled_images(image)]
    expected = torch.stack([predicted(tiny_model, v).float().softmax(0) for v in versions]).mean(0)
    found = predictor.predict_logits_from_preprocessed_data(image).softmax(0)
    assert torch.allclose(found, expected, atol=1e-5)
    assert (found - predicted(tiny_model, image).float().softmax(0)).abs().max() > 1e-3


def test_styles_keep_mean_and_standard_deviation_and_are_the_same_in_every_call(tiny_model, image):
    predictor = open_model(StylePredictor(styles=3, seed=5, **CPU), tiny_model)
    first, again = list(predictor.styled_images(image)), list(predictor.styled_images(image))
    for styled, other in zip(first, again, strict=True):
        assert torch.equal(styled, other)
        assert torch.allclose(styled.std(), image.std(), atol=1e-3)
        assert abs(styled.mean() - image.mean()) < 1e-4
    assert not torch.allclose(first[0], first[1], atol=0.1)


def test_constant_channels_and_those_of_a_previous_stage_are_not_changed(tiny_model):
    predictor = open_model(StylePredictor(styles=1, **CPU), tiny_model)
    predictor.dataset_json = {"channel_names": {"0": "A", "1": "B"}}
    data = torch.stack((torch.zeros(8, 8, 8), torch.randn(8, 8, 8), torch.ones(8, 8, 8)))
    (styled,) = predictor.styled_images(data)
    assert torch.equal(styled[0], data[0])
    assert torch.equal(styled[2], data[2])
    assert not torch.allclose(styled[1], data[1], atol=0.05)


def test_the_command_writes_a_segmentation_of_every_case(tiny_model, tiny, tmp_path):
    images = tiny.raw / tiny.name / "imagesTs"
    command = ["predict", str(tiny_model), "-i", str(images), "-o", str(tmp_path), "-device", "cpu", "--disable_tta"]
    assert main([*command, "--styles", "1", "--workers", "0"]) == 0
    for path in images.iterdir():
        labels = sitk.ReadImage(tmp_path / path.name.replace("_0000", ""))
        assert labels.GetSize() == sitk.ReadImage(path).GetSize()
        assert set(np.unique(sitk.GetArrayFromImage(labels))) <= {0, 1, 2}


def test_a_folder_without_a_model_and_a_fold_that_is_missing_are_named(tiny_model, tmp_path):
    with pytest.raises(WeightsNotFoundError, match=r"has no plans.json"):
        open_model(StylePredictor(**CPU), tmp_path)
    with pytest.raises(WeightsNotFoundError, match=r"the folds 4 of .*folds with this file: 0"):
        open_model(StylePredictor(**CPU), tiny_model, folds=["4"])


def test_a_case_without_a_channel_is_named_if_the_plans_have_a_preprocessor_of_their_own(tiny_model, tiny, tmp_path):
    predictor = open_model(StylePredictor(**CPU), tiny_model)
    predictor.dataset_json = {**predictor.dataset_json, "channel_names": {"0": "A", "1": "B"}}
    predictor.configuration_manager.configuration["preprocessor_name"] = "Mine"
    with pytest.raises(ImagesFolderError, match=r"The case test_000 in .* has no image of B, and .* Mine"):
        predict_folder(predictor, tiny.raw / tiny.name / "imagesTs", tmp_path)
