"""Dice, NSD and HD95 of every case and class, and the CSV file that holds them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_invariance.common.csv_files import read_csv
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.scoring.surfaces import surface_scores


@dataclass(frozen=True)
class Score:
    """One class of one predicted case.

    Attributes:
        condition: what the arms are compared under, for example "5 shots" or "5 shots, without T1".
        dice: in [0, 1]; nan when neither reference nor prediction has the class, 0 when only one of them has it.
        nsd, hd95: see ``surface_scores``; nan where no tolerance was given.
        n_ref, n_pred: voxels of the class in the reference and in the prediction.
    """

    condition: str
    draw: int
    arm: str
    case: str
    label: str
    dice: float
    nsd: float
    hd95: float
    n_ref: int
    n_pred: int


def score_case(
    reference: Path, prediction: Path, plans_file: Path, dataset_json: dict[str, Any], tolerance: float | None = None
) -> dict[str, tuple[float, float, float, int, int]]:
    """Dice (by nnU-Net's own code), NSD, HD95, reference and predicted voxels of every foreground class.

    All in the geometry of the reference file. Voxels with the ignore label belong to no class in either.

    Args:
        tolerance: of NSD, in mm; None leaves out NSD and HD95 (nan).

    Raises:
        ComparisonError: the prediction is missing, has another shape than the reference, or one of the two holds
            labels that dataset.json does not know.
    """
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics, region_or_label_to_mask
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(str(plans_file))
    labels = plans.get_label_manager(dataset_json)
    classes = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    names = _class_names(dataset_json["labels"], labels.has_regions)
    if not prediction.is_file():
        raise ComparisonError(
            f"{prediction} does not exist, so {reference.name} cannot be scored. Run the comparison again."
        )
    reader = plans.image_reader_writer_class()
    (truth, properties), (guess, _) = (reader.read_seg(str(file)) for file in (reference, prediction))
    for file, array in ((reference, truth), (prediction, guess)):
        require_known_labels(file, array, dataset_json)
    try:
        metrics = compute_metrics(str(reference), str(prediction), reader, classes, labels.ignore_label)["metrics"]
    except ValueError as error:
        msg = f"{prediction} cannot be compared with {reference} ({error}). Both must have the shape of the image."
        raise ComparisonError(msg) from error
    valid = truth[0] != labels.ignore_label
    rows = {}
    for c, m in metrics.items():
        surfaces = math.nan, math.nan
        if tolerance is not None:
            masks = (region_or_label_to_mask(array[0], c) & valid for array in (truth, guess))
            surfaces = surface_scores(*masks, properties["spacing"], tolerance)
        rows[names[c]] = (float(m["Dice"]), *surfaces, int(m["n_ref"]), int(m["n_pred"]))
    return rows


def require_known_labels(file: Path, array: np.ndarray, dataset_json: dict[str, Any]) -> None:
    """Refuse a segmentation with values that stand for no label.

    Raises:
        ComparisonError: names file and values.
    """
    known = {v for value in dataset_json["labels"].values() for v in (value if isinstance(value, list) else [value])}
    if unknown := sorted(set(np.unique(array).tolist()) - known):
        msg = (
            f"{file} holds the label(s) {', '.join(f'{v:g}' for v in unknown)}, but dataset.json knows "
            f"{', '.join(f'{v:g}' for v in sorted(known))}. Bring both to the same label set."
        )
        raise ComparisonError(msg)


def _class_names(labels: dict[str, Any], regions: bool) -> dict[int | tuple[int, ...], str]:
    """From nnU-Net's key of a class, a label or a tuple of labels, to its name in dataset.json."""
    keys = {name: tuple(v) if isinstance(v, list) else v for name, v in labels.items()}
    if not regions:
        keys = {name: k[0] if isinstance(k, tuple) else k for name, k in keys.items()}
    return {key: name for name, key in keys.items()}


def read_scores(path: Path) -> list[Score]:
    """Read the scores of one job or of all jobs.

    Raises:
        DamagedFileError: the file is missing or damaged.
    """
    return read_csv(path, Score)
