"""Cases that lack a modality, made complete: a constant image in each empty slot."""

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
class Completed:
    """What :func:`complete` did: cases, and the names of the channels that were filled in each that lacked any."""

    cases: int
    filled: Mapping[str, tuple[str, ...]]


def complete(images: Path, out: Path, dataset: str) -> Completed:
    """Copy the images of a folder and write a zero image into each empty slot, with the grid of the case's first one.

    PUIRTrainer's network takes a constant image for a modality that is missing. Nothing is written unless all can be.

    Args:
        images: files ``CASE_0000`` and so on, as for ``nnUNetv2_predict``, some of them absent.
        out: a folder that is empty or not there.
        dataset: name or id; its dataset.json says how many channels a case has.

    Raises:
        ImagesFolderError: no folder, no image, a channel that the dataset does not have, or different grids.
        OutputError: ``out`` holds something.
        EnvironmentNotSetError, DatasetNotFoundError
    """
    description = _read_dataset_json(dataset)
    names, ending = channel_names_of(description), description["file_ending"]
    cases = find_cases(images, ending, names)
    for files in cases.values():
        check_same_grid(list(files.values()))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is not empty and is not written into. Give a new folder.")
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
        msg = f"{out} could not be written ({error.strerror}). Free space, or give a place that is writable."
        raise OutputError(msg) from error
    lacking = {case: tuple(n for i, n in enumerate(names) if i not in files) for case, files in cases.items()}
    return Completed(len(cases), {case: missing for case, missing in lacking.items() if missing})


def find_cases(images: Path, ending: str, names: list[str]) -> dict[str, dict[int, Path]]:
    """Files of each case by channel, in order."""
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
        msg = f"The images folder {images} holds no file named CASE_0000{ending}, CASE_0001{ending} and so on. "
        raise ImagesFolderError(f"{msg}Name the images as nnUNetv2_predict wants them.")
    return cases


def zeros_like(file: Path) -> sitk.Image:
    """An image of zeros with the geometry and pixel type of a file."""
    reference = sitk.ReadImage(str(file))
    zeros = sitk.Image(reference.GetSize(), reference.GetPixelID())
    zeros.CopyInformation(reference)
    return zeros


def _read_dataset_json(dataset: str) -> dict:
    """From nnUNet_raw or nnUNet_preprocessed."""
    require_environment()
    name = dataset_name_of(dataset)
    files = [Path(os.environ[tree]) / name / "dataset.json" for tree in ("nnUNet_raw", "nnUNet_preprocessed")]
    for file in files:
        if file.is_file():
            return json.loads(file.read_text())
    raise DatasetNotFoundError(f"{name} has no dataset.json: neither {files[0]} nor {files[1]} exists. Restore one.")
