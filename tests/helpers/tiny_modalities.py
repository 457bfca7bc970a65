"""The tiny data set with two modalities, T1 and CT, whose intensities depend on the labels in the same way."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tests.helpers.tiny_dataset import TRAINING_SHAPES, synthetic_case

NAME = "Dataset779_Modalities"
CHANNELS = ("T1", "CT")
MISSING = {2: 1, 3: 0, 5: 1}  # training case: its missing channel; the last case is smaller than the patch
#: The message about the case that `write_apart` writes.
DIFFERENT = (
    r"a_0001\.nii\.gz has the origin \(-?0\.0, 5\.0, -?0\.0\), but "
    r"\S*a_0000\.nii\.gz has \(-?0\.0, -?0\.0, -?0\.0\)\. .*resample"
)
TEST = {"both": ((40, 40, 40), None), "small": ((26, 36, 40), 1), "no_t1": ((36, 40, 40), 0)}


def write_case(folder: Path, name: str, shape: tuple[int, int, int], seed: int, missing: int | None) -> sitk.Image:
    """Write both channels of a case, zeros for a missing one; returns the labels."""
    t1, labels = synthetic_case(shape, seed)
    ct = -800.0 + 900 * (sitk.GetArrayFromImage(labels) > 0) + 2 * sitk.GetArrayFromImage(t1)
    for channel, image in enumerate((sitk.GetArrayFromImage(t1), ct)):
        image = np.zeros_like(image) if channel == missing else image
        sitk.WriteImage(sitk.GetImageFromArray(image.astype(np.float32)), folder / f"{name}_{channel:04d}.nii.gz")
    return labels


def write_raw_dataset(folder: Path) -> None:
    """Six labelled cases and dataset.json."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for index, shape in enumerate(TRAINING_SHAPES):
        labels = write_case(folder / "imagesTr", f"case_{index:03d}", shape, index, MISSING.get(index))
        sitk.WriteImage(labels, folder / "labelsTr" / f"case_{index:03d}.nii.gz")
    dataset = {
        "channel_names": {str(i): name for i, name in enumerate(CHANNELS)},
        "labels": {"background": 0, "body": 1, "core": 2},
        "numTraining": len(TRAINING_SHAPES),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))


def write_tests(folder: Path) -> None:
    """Write the images of :data:`TEST` without the missing ones."""
    folder.mkdir()
    for index, (name, (shape, missing)) in enumerate(TEST.items()):
        write_case(folder, name, shape, 100 + index, missing)
        if missing is not None:
            (folder / f"{name}_{missing:04d}.nii.gz").unlink()


def write_apart(folder: Path) -> sitk.Image:
    """Write a case whose CT is shifted by 5 mm from its T1; returns the labels."""
    folder.mkdir(parents=True)
    labels = write_case(folder, "a", (36, 36, 36), 200, None)
    image = sitk.ReadImage(folder / "a_0001.nii.gz")
    image.SetOrigin((0.0, 5.0, 0.0))
    sitk.WriteImage(image, folder / "a_0001.nii.gz")
    return labels
