"""Fill the missing channels of cases with images of zeros, so that nnUNetv2_predict accepts the cases."""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from nnunet_invariance.common.image_files import read_image, write_image
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.errors import DatasetNotFoundError, ImagesFolderError, OutputError
from nnunet_invariance.nnunet.grids import check_case
from nnunet_invariance.nnunet.planned_dataset import (
    channel_names_of,
    dataset_name_of,
    read_dataset_json,
    require_environment,
)


@dataclass(frozen=True)
class FillReport:
    """Result of :func:`fill_missing_channels`.

    >>> FillReport(2, {"case_000": ("T1",)}).cases
    2

    Attributes:
        cases: number of cases.
        filled: names of the channels that were filled, for each case that lacked any.
    """

    cases: int
    filled: Mapping[str, tuple[str, ...]]


def fill_missing_channels(images: Path, out: Path, dataset: str) -> FillReport:
    """Copy the images of a folder and write an image of zeros, on the grid of the case, for each missing channel.

    PUIRTrainer's network treats a constant image as a missing modality. All files are checked before the first one is
    written.

    Args:
        images: files ``CASE_0000`` and so on, as for ``nnUNetv2_predict``; some may be absent.
        out: output folder; it must be empty or not exist.
        dataset: name or id of the dataset; its dataset.json gives the channels.

    Raises:
        ImagesFolderError: the folder is missing or contains no image, a file has a channel that the dataset does not
            have, or the channels of a case have different grids.
        VolumeError: an image is damaged.
        OutputError: ``out`` is not empty or cannot be written.
        EnvironmentNotSetError, DatasetNotFoundError, DamagedFileError: the dataset cannot be used.
    """
    description = _read_dataset_json(dataset)
    names, ending = channel_names_of(description), description["file_ending"]
    cases = find_cases(images, ending, names)
    for files in cases.values():
        check_case(list(files.values()))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is not empty. Give a new folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for case, files in Progress(cases.items(), desc="filling", unit="case"):
            for channel in range(len(names)):
                target = out / f"{case}_{channel:04d}{ending}"
                if channel in files:
                    shutil.copyfile(files[channel], target)
                else:
                    write_image(target, zeros_like(next(iter(files.values()))))
    except OSError as error:
        msg = f"{out} could not be written ({error.strerror}). Free space, or give a writable folder."
        raise OutputError(msg) from error
    lacking = {case: tuple(n for i, n in enumerate(names) if i not in files) for case, files in cases.items()}
    return FillReport(len(cases), {case: missing for case, missing in lacking.items() if missing})


def find_cases(images: Path, ending: str, names: list[str]) -> dict[str, dict[int, Path]]:
    """Group the images of a folder by case and channel index, in sorted order.

    Raises:
        ImagesFolderError: the folder is missing or contains no image, or a file has a channel that the dataset does
            not have.
    """
    if not images.is_dir():
        raise ImagesFolderError(f"The images folder {images} does not exist. Give an existing folder.")
    cases: dict[str, dict[int, Path]] = {}
    for path in sorted(images.iterdir()):
        if found := re.fullmatch(rf"(.+)_(\d{{4}}){re.escape(ending)}", path.name):
            channel = int(found[2])
            if channel >= len(names):
                raise ImagesFolderError(
                    f"{path} is channel {channel}, but the dataset has the channels 0 to {len(names) - 1} "
                    f"({', '.join(names)}). Rename or remove it."
                )
            cases.setdefault(found[1], {})[channel] = path
    if not cases:
        msg = f"The images folder {images} contains no file named CASE_0000{ending}, CASE_0001{ending} and so on. "
        raise ImagesFolderError(f"{msg}Name the images as nnUNetv2_predict expects them.")
    return cases


def zeros_like(file: Path) -> sitk.Image:
    """Create an image of zeros with the geometry and pixel type of an image file."""
    reference = read_image(file)
    zeros = sitk.Image(reference.GetSize(), reference.GetPixelID())
    zeros.CopyInformation(reference)
    return zeros


def _read_dataset_json(dataset: str) -> dict[str, Any]:
    """``dataset.json`` from nnUNet_raw or nnUNet_preprocessed."""
    require_environment()
    name = dataset_name_of(dataset)
    files = [Path(os.environ[tree]) / name / "dataset.json" for tree in ("nnUNet_raw", "nnUNet_preprocessed")]
    for file in files:
        if file.is_file():
            return read_dataset_json(file)
    raise DatasetNotFoundError(f"{name} has no dataset.json: neither {files[0]} nor {files[1]} exists. Restore one.")
