"""Complete cases that lack a modality: write an image of zeros for each missing channel."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk
from tqdm import tqdm

from nnunet_invariance.errors import DatasetNotFoundError, ImagesFolderError, OutputError
from nnunet_invariance.nnunet.grids import check_same_grid
from nnunet_invariance.nnunet.planned_dataset import channel_names_of, dataset_name_of, require_environment


@dataclass(frozen=True)
class FillReport:
    """Result of :func:`complete`.

    Attributes:
        cases: number of cases.
        filled: the names of the channels that were missing, by case; complete cases are left out.

    >>> FillReport(2, {"case_1": ("T1",)}).filled["case_1"]
    ('T1',)
    """

    cases: int
    filled: Mapping[str, tuple[str, ...]]


def complete(images: Path, out: Path, dataset: str) -> FillReport:
    """Copy the images of a folder, and write an image of zeros for each missing channel.

    The zeros have the grid of the case's first image. PUIRTrainer's network treats them as a missing modality. All
    cases are checked before anything is written.

    Args:
        images: folder with files ``CASE_0000`` and so on, as for ``nnUNetv2_predict``, of which some are missing.
        out: an empty or new folder.
        dataset: name or id; its dataset.json names the channels.

    Raises:
        ImagesFolderError: there is no folder or image, a channel is not in the dataset, or grids differ.
        OutputError: ``out`` is not empty.
        EnvironmentNotSetError, DatasetNotFoundError
    """
    description = _read_dataset_json(dataset)
    names, ending = channel_names_of(description), description["file_ending"]
    cases = find_cases(images, ending, names)
    for files in cases.values():
        check_same_grid(list(files.values()))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is not empty. Give a new folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for case, files in tqdm(cases.items(), desc="completing", unit="case", disable=None):
            for channel in range(len(names)):
                target = out / f"{case}_{channel:04d}{ending}"
                if channel in files:
                    shutil.copyfile(files[channel], target)
                else:
                    sitk.WriteImage(zeros_like(next(iter(files.values()))), str(target))
    except OSError as error:
        msg = f"{out} could not be written ({error.strerror}). Free space, or give a writable folder."
        raise OutputError(msg) from error
    lacking = {case: tuple(n for i, n in enumerate(names) if i not in files) for case, files in cases.items()}
    return FillReport(len(cases), {case: missing for case, missing in lacking.items() if missing})


def find_cases(images: Path, ending: str, names: list[str]) -> dict[str, dict[int, Path]]:
    """The files of each case, by channel."""
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
        raise ImagesFolderError(f"{msg}Name the images as for nnUNetv2_predict.")
    return cases


def zeros_like(file: Path) -> sitk.Image:
    """Create an image of zeros with the geometry and pixel type of a file."""
    reference = sitk.ReadImage(str(file))
    zeros = sitk.Image(reference.GetSize(), reference.GetPixelID())
    zeros.CopyInformation(reference)
    return zeros


def _read_dataset_json(dataset: str) -> dict:
    """Read dataset.json from nnUNet_raw or nnUNet_preprocessed."""
    require_environment()
    name = dataset_name_of(dataset)
    files = [Path(os.environ[tree]) / name / "dataset.json" for tree in ("nnUNet_raw", "nnUNet_preprocessed")]
    for file in files:
        if file.is_file():
            return json.loads(file.read_text())
    raise DatasetNotFoundError(f"{name} has no dataset.json: neither {files[0]} nor {files[1]} exists. Restore one.")
