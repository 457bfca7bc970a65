"""The correlation of the Dice with intensities, on images whose levels are known."""

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from benchmarks.studies.few_labels.levels import levels, rows
from nnunet_invariance.common.json_files import write_json
from nnunet_invariance.errors import ComparisonError

DESCRIBED = {"labels": {"background": 0, "near": 1, "far": 2}, "file_ending": ".nii.gz"}


def write_case(raw, kind, name, near):
    """A cube of two classes; ``near`` is the intensity of the first one, and the second one is always 0."""
    labels = np.zeros((4, 8, 8), np.uint8)
    labels[:, :2], labels[:, 2:4] = 1, 2
    image = np.where(labels == 1, near, 0).astype(np.float32)
    image[:, 4:6] = 10
    for folder, ending, array in (("images", "_0000", image), ("labels", "", labels)):
        (raw / f"{folder}{kind}").mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(raw / f"{folder}{kind}" / f"{name}{ending}.nii.gz"))


def test_a_dice_that_falls_with_the_distance_has_a_correlation_of_minus_one(tmp_path):
    raw, folder = tmp_path / "nnUNet_raw" / "Dataset001_A", tmp_path / "comparison" / "Dataset001_A_1"
    write_case(raw, "Tr", "train", near=5)
    tests = {"a": 6, "b": 2, "c": 9}
    for name, near in tests.items():
        write_case(raw, "Ts", name, near)
    write_json(raw / "dataset.json", DESCRIBED)
    subset = {"draw": 0, "train": ["train"]}
    write_json(folder / "comparison.json", {"comparison": {"dataset": "Dataset001_A", "subsets": [subset]}})
    cells = [("arm", 0, case, "near", 1 - abs(near - 5) / 10) for case, near in tests.items()]
    pd.DataFrame(cells, columns=["arm", "draw", "case", "label", "dice"]).to_csv(folder / "scores.csv", index=False)
    (row,) = rows(folder)
    assert (row["class"], row["correlation"], row["cases"]) == ("near", "-1.00", "3")
    assert row["Dice"] == "0.733"


def test_levels_are_z_scores_and_nan_where_a_class_is_missing(tmp_path):
    write_case(tmp_path, "Ts", "a", near=10)
    found = levels(tmp_path, "Ts", "a", {**DESCRIBED, "labels": {"background": 0, "near": 1, "other": 7}})
    assert found["near"] == pytest.approx(1)  # half of the voxels are 10 and half are 0
    assert np.isnan(found["other"])


def test_a_folder_without_scores_is_an_error(tmp_path):
    with pytest.raises(ComparisonError, match=r"has no scores.csv. Name the folder of a comparison"):
        next(iter(rows(tmp_path)))
