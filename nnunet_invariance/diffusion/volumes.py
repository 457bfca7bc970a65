"""Labelled volumes of a raw nnU-Net data set, one channel, with their geometry."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import DatasetNotFoundError, EnvironmentNotSetError, StyleFolderError
from nnunet_invariance.nnunet.planned_dataset import channel_names_of, dataset_name_of, read_dataset_json

#: Planes by the world axis (left-right, front-back, foot-head) that is normal to them.
PLANES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True)
class RawDataset:
    """A labelled data set with one channel.

    Attributes:
        cases: image and label file of each case.
        classes: number of labels, background and, where there is one, the ignore label counted.
    """

    name: str
    json: dict[str, Any]
    cases: dict[str, tuple[Path, Path]]
    classes: int

    @property
    def ending(self) -> str:
        """File ending of its images."""
        return self.json["file_ending"]


def open_raw_dataset(dataset: str) -> RawDataset:
    """Open a data set in ``nnUNet_raw`` by name or id.

    Raises:
        EnvironmentNotSetError, DatasetNotFoundError
        StyleFolderError: it has several channels, no cases, or a case without labels.
    """
    raw = os.environ.get("nnUNet_raw", "")
    if not raw or not Path(raw).is_dir():
        raise EnvironmentNotSetError(f"nnUNet_raw is {raw!r}; expected nnU-Net's folder of raw data sets. Set it.")
    name = dataset_name_of(dataset)
    folder = Path(raw) / name
    if not (folder / "dataset.json").is_file():
        raise DatasetNotFoundError(f"{folder} contains no dataset.json. The images and labels are read from there.")
    content = read_dataset_json(folder / "dataset.json")
    channels = channel_names_of(content)
    if len(channels) != 1:
        msg = f"{name} has {len(channels)} channels; the diffusion path makes views of one. "
        raise StyleFolderError(f"{msg}Train with on-device interventions only, or make a data set of one channel.")
    files = get_filenames_of_train_images_and_targets(str(folder), content)
    cases = {case: (Path(found["images"][0]), Path(found["label"])) for case, found in sorted(files.items())}
    missing = [label.name for _, label in cases.values() if not label.is_file()]
    if missing or not cases:
        problem = (
            f"no labels for {len(missing)} of {len(cases)} cases: {', '.join(missing[:5])}" if cases else "no cases"
        )
        raise StyleFolderError(f"{folder} has {problem}. Slices need both: add the labels or move the images away.")
    flat = [v for value in content["labels"].values() for v in (value if isinstance(value, list) else [value])]
    return RawDataset(name, content, cases, max(flat) + 1)


def read_volume(path: Path) -> sitk.Image:
    """A three-dimensional image.

    Raises:
        StyleFolderError: it cannot be read, or is flat or four-dimensional.
    """
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise StyleFolderError(f"{path} cannot be read: {error}. Expected a format of SimpleITK, as NIfTI.") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        msg = f"{path} has {image.GetDimension()} dimensions and "
        msg += f"{counted(image.GetNumberOfComponentsPerPixel(), 'component')}; "
        raise StyleFolderError(f"{msg}expected a volume of one. Save flat images as volumes of one slice.")
    return image


def read_case(image_path: Path, label_path: Path, classes: int) -> tuple[sitk.Image, np.ndarray, np.ndarray]:
    """Header, image (float32) and labels (uint8), both (z, y, x).

    Raises:
        StyleFolderError: they cannot be read, differ in shape, or hold labels that dataset.json does not define.
    """
    image, labels = read_volume(image_path), sitk.GetArrayFromImage(read_volume(label_path))
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    if labels.shape != array.shape:
        msg = f"{label_path} has shape {labels.shape}, its image {array.shape}; "
        raise StyleFolderError(f"{msg}expected the same. Check both with nnUNetv2_plan_and_preprocess --verify.")
    if labels.min() < 0 or labels.max() >= min(classes, 256):
        msg = f"{label_path} contains labels {labels.min()} to {labels.max()}; dataset.json knows 0 to {classes - 1}. "
        raise StyleFolderError(f"{msg}Correct one of them; at most 256 labels are supported.")
    return image, array, labels.astype(np.uint8)


def slice_axis(image: sitk.Image, plane: str | None) -> int:
    """Array axis (z, y, x) normal to a plane; without a plane, the first axis with the largest spacing."""
    if plane is None:
        return int(np.argmax(image.GetSpacing()[::-1]))
    direction = np.abs(np.reshape(image.GetDirection(), (3, 3)))
    return 2 - int(np.argmax(direction[PLANES.index(plane)]))


def window_of(array: np.ndarray, window: Sequence[float] | None) -> tuple[float, float]:
    """The given window, or the 1st and 99th percentile of the volume; never empty."""
    low, high = window if window is not None else np.percentile(array, (1, 99))
    return float(low), float(max(high, low + 1e-6))


def to_unit(array: np.ndarray, window: Sequence[float]) -> np.ndarray:
    """Scale the window to [0, 1] and clip; float32."""
    return np.clip((array - window[0]) / (window[1] - window[0]), 0, 1).astype(np.float32)
