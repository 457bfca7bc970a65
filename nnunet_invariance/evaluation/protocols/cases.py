"""The cases of a comparison: labelled raw cases, preprocessed cases, and cases that a pre-training has seen."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import ComparisonError, DatasetNotFoundError
from nnunet_invariance.nnunet.cases import MANIFEST_FORM
from nnunet_invariance.weights.checkpoint import read_metadata

logger = logging.getLogger(__name__)

# Endings of the files that nnU-Net may have written for one preprocessed case.
PREPROCESSED_ENDINGS = (".b2nd", "_seg.b2nd", ".npz", ".npy", "_seg.npy", ".pkl")


@dataclass(frozen=True)
class LabelledCase:
    """One raw case: one image file per channel, in order, and the reference segmentation.

    >>> LabelledCase("a", (Path("a_0000.nii.gz"),), Path("a.nii.gz")).name
    'a'
    """

    name: str
    images: tuple[Path, ...]
    label: Path


def labelled_cases(raw: Path, dataset_json: dict[str, Any]) -> dict[str, LabelledCase]:
    """Every case of a raw dataset that has a label file: imagesTr with labelsTr, and imagesTs with labelsTs.

    Raises:
        DatasetNotFoundError: the folder is missing.
        ComparisonError: a labelled case of imagesTs lacks a channel.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    if not raw.is_dir():
        msg = f"{raw} does not exist; the test images are read from it. Set nnUNet_raw to the folder of the datasets."
        raise DatasetNotFoundError(msg)
    train = "dataset" in dataset_json or (raw / "imagesTr").is_dir()
    found = get_filenames_of_train_images_and_targets(str(raw), dataset_json) if train else {}
    cases = {name: LabelledCase(name, tuple(map(Path, c["images"])), Path(c["label"])) for name, c in found.items()}
    apart = {name: case for name, case in _test_images(raw, dataset_json).items() if case.label.is_file()}
    _require_channels(apart, dataset_json)  # only of cases that can be tested
    return {name: case for name, case in cases.items() if case.label.is_file()} | apart


def test_folder_cases(folder: Path, dataset_json: dict[str, Any]) -> dict[str, LabelledCase]:
    """The cases in ``imagesTs`` of a folder, each with its file in ``labelsTs``, which may be missing.

    Raises:
        ComparisonError: there is no such image, one lacks a channel, or dataset.json of the folder has other labels.
    """
    cases = _test_images(folder, dataset_json)
    if not cases:
        ending = dataset_json["file_ending"]
        msg = f"{folder} contains no test image: expected imagesTs/CASE_0000{ending} and labelsTs/CASE{ending} in it."
        raise ComparisonError(f"{msg} Give a folder that does, or names of cases.")
    _require_channels(cases, dataset_json)
    labels, own = dataset_json["labels"], read_json(folder / "dataset.json", default={}, form=dict).get("labels")
    if own is not None and own != labels:
        msg = f"{folder / 'dataset.json'} has the labels {own}, expected those that are trained: {labels}. "
        raise ComparisonError(f"{msg}Give the folder's label files and its dataset.json the latter.")
    return cases


def _test_images(folder: Path, dataset_json: dict[str, Any]) -> dict[str, LabelledCase]:
    """The cases of ``imagesTs``, complete or not, with the paths of their labels, which may be missing."""
    from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

    ending, images = dataset_json["file_ending"], folder / "imagesTs"
    cases = {}
    for files in create_lists_from_splitted_dataset_folder(str(images), ending) if images.is_dir() else []:
        paths = tuple(map(Path, files))
        name = paths[0].name[: -len(f"_0000{ending}")]
        cases[name] = LabelledCase(name, paths, folder / "labelsTs" / f"{name}{ending}")
    return cases


def _require_channels(cases: Mapping[str, LabelledCase], dataset_json: dict[str, Any]) -> None:
    channels = len(dataset_json["channel_names"])
    for name, case in cases.items():
        if (found := len(case.images)) != channels:
            where = case.images[0].parent
            msg = f"Case {name} in {where} has {counted(found, 'image file')}, expected {channels}, one per channel"
            raise ComparisonError(f"{msg}. Add the missing files or leave the case out.")


def require_labelled(wanted: Iterable[str], cases: Mapping[str, LabelledCase]) -> None:
    """Refuse test cases that have no image with a label.

    Raises:
        ComparisonError: names them.
    """
    if missing := sorted(set(wanted) - {name for name, case in cases.items() if case.label.is_file()}):
        msg = (
            f"{counted(len(missing), 'test case has', 'test cases have')} no image with a label: "
            f"{', '.join(missing[:5])}. A test case needs its file in labelsTr or labelsTs; correct the ids or add "
            "the labels."
        )
        raise ComparisonError(msg)


def preprocessed_cases(folder: Path, ground_truth: Path, ending: str) -> set[str]:
    """Names of the cases that nnU-Net has preprocessed and whose segmentation is in ``gt_segmentations``."""
    names = {p.name[: -len(".pkl")] for p in folder.glob("*.pkl")}
    return {name for name in names if (ground_truth / f"{name}{ending}").is_file()}


def seen_cases(checkpoints: Iterable[Path], besides: str | None = None) -> set[str]:
    """Names of all cases in the manifests beside the checkpoints; a checkpoint without one is named in the log.

    Cases in preprocessed folders with the name ``besides`` are left out.

    Raises:
        ComparisonError: a manifest is not that of its checkpoint.
    """
    names: set[str] = set()
    for path in checkpoints:
        file = path.parent / "manifest.json"
        if file.is_file():
            manifest = read_json(file, form=MANIFEST_FORM)
            if manifest["sha256"] != read_metadata(path)["manifest_sha256"]:
                msg = f"{file} lists other cases than those of {path.name}, whose training cases are unknown. "
                raise ComparisonError(f"{msg}Restore the manifest, or pre-train again.")
            cases = manifest["cases"]
            names |= {case["name"] for case in cases if besides is None or case.get("source") != besides}
        else:
            logger.warning("%s has no manifest.json beside it: it may have seen test cases", path)
    return names
