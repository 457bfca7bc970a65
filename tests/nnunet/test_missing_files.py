"""Missing files and constant images: recognised before preprocessing, with the result of images of zeros."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_invariance.errors import ImagesFolderError
from nnunet_invariance.nnunet.missing_files import (
    MissingChannelsPreprocessor,
    accept_missing_channels,
    complete_case,
    missing_channels,
)

SHAPE = (6, 7, 8)
RNG = np.random.default_rng(0)


def brain() -> np.ndarray:
    """An image with zeros around it, also in the middle of the mask."""
    image = RNG.normal(100, 20, SHAPE)
    image[:2], image[:, :1], image[3, 3, 3] = 0, 0, 0
    return image


def mask() -> np.ndarray:
    """1 in the bounding box of :func:`brain` but for one of its corners, so that it is no box."""
    inside = np.zeros(SHAPE)
    inside[2:, 1:] = 1
    inside[2, 1, 0] = 0
    return inside


def in_mask(image: np.ndarray) -> np.ndarray:
    return np.where(mask() > 0, image, 0)


def part(image: np.ndarray) -> np.ndarray:
    """NaN outside of a small field of view."""
    return np.where(np.arange(SHAPE[1])[:, None] < 4, image, np.nan)


@pytest.mark.parametrize("value", [0.0, 7.0, -1000.0, 1e-3, np.nan, np.inf])
def test_a_constant_is_missing_also_in_a_field_of_view_or_a_brain_mask(value):
    constant = np.full(SHAPE, value)
    for placeholder in (constant, part(constant), in_mask(constant)):
        found = missing_channels(np.stack((in_mask(brain()), placeholder, in_mask(brain()))))
        assert found.tolist() == [False, True, False]


def test_images_are_not_missing():
    lesion = np.zeros(SHAPE)
    lesion[3, 3:5, 2:5] = 1
    lesion[4, 3, 2] = 1  # a label map as a channel: two values, but no box, and not the mask of the others
    images = [part(brain()), (brain() > 100).astype(float), lesion, brain() - 5000]
    assert not missing_channels(np.stack(images)).any()
    assert missing_channels(np.stack([mask(), 3 * mask(), mask()])).tolist() == [False] * 3  # masks alone


def test_files_fill_the_channels_of_their_names():
    image = RNG.random((2, *SHAPE))
    whole = complete_case(image, ["a_0002.nii.gz", "a_0001.nii.gz"], 4, ".nii.gz")
    assert whole.dtype == np.float32
    assert np.array_equal(whole[[2, 1]], image.astype(np.float32))
    assert not whole[[0, 3]].any()
    assert np.array_equal(complete_case(image, ["one_file.png"], 2, ".png"), image.astype(np.float32))
    with pytest.raises(ImagesFolderError, match=r"case.nii.gz hold 2 channels, and the dataset has 4.*CASE_0003"):
        complete_case(image, ["case.nii.gz"], 4, ".nii.gz")
    with pytest.raises(ImagesFolderError, match=r"a_0000.nii.gz has no image: every channel is constant"):
        complete_case(np.full((1, *SHAPE), 3.0), ["a_0000.nii.gz"], 2, ".nii.gz")


@pytest.fixture
def plan(modalities) -> SimpleNamespace:
    """The plans, their configuration and the description of the data set."""
    manager = PlansManager(modalities.plans)
    described = json.loads((modalities.preprocessed / modalities.name / "dataset.json").read_text())
    return SimpleNamespace(manager=manager, configuration=manager.get_configuration("3d_fullres"), described=described)


@pytest.mark.parametrize("missing", [0, 1])  # z-scores and CT
def test_the_result_is_bit_equal_to_that_of_zeros(plan, tmp_path, missing):
    """The other image is 0 at its border, so that a constant would change the crop and with it the statistics."""
    image, files = np.zeros((36, 36, 36), np.float32), {}
    image[4:30, 3:33, 2:36] = np.random.default_rng(1).normal(50, 10, (26, 30, 34))
    placeholders = {"zeros": 0 * image, "air": 0 * image - 1000, "masked": 5 * (image != 0), "absent": None}
    for name, placeholder in placeholders.items():
        given = {1 - missing: image, missing: placeholder}
        files[name] = [str(tmp_path / f"{name}_000{c}.nii.gz") for c in range(2) if given[c] is not None]
        for file in files[name]:
            channel = int(file[-8])
            sitk.WriteImage(sitk.GetImageFromArray(given[channel].astype(np.float32)), file)

    def run(preprocessor: type, name: str) -> np.ndarray:
        return preprocessor(False).run_case(files[name], None, plan.manager, plan.configuration, plan.described)[0]

    expected = run(DefaultPreprocessor, "zeros")
    for name in placeholders:
        assert np.array_equal(run(MissingChannelsPreprocessor, name), expected), name
    assert not np.array_equal(run(DefaultPreprocessor, "air"), expected)


def test_plans_name_the_preprocessor_unless_they_have_their_own(plan):
    configuration = plan.configuration.configuration
    assert accept_missing_channels(configuration)
    assert plan.configuration.preprocessor_class is MissingChannelsPreprocessor
    assert not accept_missing_channels({"preprocessor_name": "MyPreprocessor"})
