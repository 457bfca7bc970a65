"""What a comparison may draw from: labelled raw cases, preprocessed cases, and what a pre-training has seen."""

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_invariance.errors import ComparisonError, DatasetNotFoundError
from nnunet_invariance.plans.options import BLOCK
from nnunet_invariance.pretraining.planned_dataset import PlannedDataset
from nnunet_invariance.weights.locate import ENVIRONMENT_VARIABLE, FINAL

logger = logging.getLogger(__name__)

# What nnU-Net may have left of one preprocessed case, beside CASE.pkl.
PREPROCESSED_ENDINGS = (".b2nd", "_seg.b2nd", ".npz", ".npy", "_seg.npy", ".pkl")


@dataclass(frozen=True)
class LabelledCase:
    """One raw case: one image file a channel, in order, and the reference segmentation."""

    name: str
    images: tuple[Path, ...]
    label: Path


def labelled_cases(raw: Path, dataset_json: dict[str, Any]) -> dict[str, LabelledCase]:
    """Every case of a raw dataset that has a label file: imagesTr with labelsTr, and imagesTs with labelsTs.

    Raises:
        DatasetNotFoundError: the folder is missing.
    """
    from nnunetv2.utilities.utils import (
        create_lists_from_splitted_dataset_folder,
        get_filenames_of_train_images_and_targets,
    )

    if not raw.is_dir():
        msg = f"{raw} does not exist; the test images are read from there. Set nnUNet_raw to where the dataset lies."
        raise DatasetNotFoundError(msg)
    ending = dataset_json["file_ending"]
    found = get_filenames_of_train_images_and_targets(str(raw), dataset_json)
    cases = {name: LabelledCase(name, tuple(map(Path, c["images"])), Path(c["label"])) for name, c in found.items()}
    if (raw / "imagesTs").is_dir():
        for files in create_lists_from_splitted_dataset_folder(str(raw / "imagesTs"), ending):
            images = tuple(map(Path, files))
            name = images[0].name[: -len(f"_0000{ending}")]
            cases[name] = LabelledCase(name, images, raw / "labelsTs" / f"{name}{ending}")
    return {name: case for name, case in cases.items() if case.label.is_file()}


def require_labelled(wanted: Iterable[str], cases: dict[str, LabelledCase]) -> None:
    """Refuse test cases that have no label.

    Raises:
        ComparisonError: names them.
    """
    if missing := sorted(set(wanted) - set(cases)):
        msg = (
            f"{len(missing)} test case(s) have no image with a label in nnUNet_raw: {', '.join(missing[:5])}. "
            "A test case needs its file in labelsTr or labelsTs; correct the ids or add the labels."
        )
        raise ComparisonError(msg)


def preprocessed_cases(folder: Path, ground_truth: Path, ending: str) -> set[str]:
    """Names of the cases that nnU-Net has preprocessed and whose segmentation stands in ``gt_segmentations``."""
    names = {p.name[: -len(".pkl")] for p in folder.glob("*.pkl")}
    return {name for name in names if (ground_truth / f"{name}{ending}").is_file()}


def checkpoints_in_use(
    planned: PlannedDataset, pretraining: Path, environments: Sequence[Mapping[str, str]]
) -> list[Path]:
    """Every checkpoint that a trainer of the comparison could start from: those that the environment, an arm's own
    environment or the plans block names, and the finished pre-trainings for these plans."""
    block = planned.configuration.configuration.get(BLOCK, {})
    named = [e.get(ENVIRONMENT_VARIABLE) for e in (os.environ, *environments)] + [block.get("checkpoint")]
    folders = pretraining.glob(f"*__{planned.plans.plans_name}__{planned.configuration_name}")
    paths = [Path(name).expanduser() for name in named if name] + [folder / FINAL for folder in folders]
    return sorted({path.resolve() for path in paths if path.is_file()})


def seen_cases(checkpoints: Iterable[Path]) -> set[str]:
    """Names of all cases in the manifests beside the checkpoints; a checkpoint without one is named in the log."""
    names: set[str] = set()
    for path in checkpoints:
        manifest = path.parent / "manifest.json"
        if manifest.is_file():
            names |= {case["name"] for case in json.loads(manifest.read_text())["cases"]}
        else:
            logger.warning("%s has no manifest.json beside it: whether it has seen test cases cannot be checked", path)
    return names
