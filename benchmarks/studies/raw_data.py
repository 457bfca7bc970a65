"""Raw data sets of studies in nnU-Net's layout. An existing image is never changed, because comparisons link to it."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.runner.tree import link

ENDING = ".nii.gz"


def read_description(source: Path) -> dict[str, Any]:
    """The dataset.json of a data set in the folder of ``--data``."""
    return read_json(present(source / "dataset.json"))


def present(path: Path) -> Path:
    """The path itself.

    Raises:
        ComparisonError: there is no such file.
    """
    if not path.is_file():
        raise ComparisonError(f"{path} does not exist. Give the shared data folder with --data.")
    return path


def cases_of(source: Path) -> list[str]:
    """Names of the labelled cases, sorted."""
    return sorted(path.name.removesuffix(ENDING) for path in (source / "labelsTr").glob(f"*{ENDING}"))


def link_cases(source: Path, raw: Path, test: Collection[str] = ()) -> None:
    """Link the labelled cases of a data set into another one, with those of ``test`` in imagesTs and labelsTs."""
    described, cases = read_description(source), cases_of(source)
    for case in cases:
        kind = "Ts" if case in test else "Tr"
        link(source / "labelsTr" / f"{case}{ENDING}", raw / f"labels{kind}" / f"{case}{ENDING}")
        for channel in range(len(described["channel_names"])):
            name = f"{case}_{channel:04d}{ENDING}"
            link(source / "imagesTr" / name, raw / f"images{kind}" / name)
    write_json(raw / "dataset.json", {**described, "numTraining": len(cases) - len(test)})


def like(array: np.ndarray, image: sitk.Image) -> sitk.Image:
    """An image with the voxels of an array and the grid of another image."""
    result = sitk.GetImageFromArray(array)
    result.CopyInformation(image)
    return result


def write_image(image: sitk.Image, path: Path) -> None:
    """Write an image unless the file exists; an interrupted write leaves no file of this name."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial_{path.name}")
    sitk.WriteImage(image, partial)
    partial.replace(path)


def describe(raw: Path, channels: Sequence[str], labels: Mapping[str, int]) -> None:
    """Write dataset.json, the last of all files of a data set."""
    content = {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": dict(labels),
        "numTraining": len(cases_of(raw)),
        "file_ending": ENDING,
    }
    write_json(raw / "dataset.json", content)
