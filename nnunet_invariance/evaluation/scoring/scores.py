"""Dice, NSD and HD95 of every case and class, and the CSV file that contains them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_invariance.common.csv_files import read_csv
from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.scoring.surfaces import surface_scores


class ClassScores(NamedTuple):
    """The numbers of one class of one case; see :class:`Score`.

    >>> ClassScores(0.9, 0.8, 2.0, 100, 110).dice
    0.9
    """

    dice: float
    nsd: float
    hd95: float
    n_ref: int
    n_pred: int


@dataclass(frozen=True)
class Score:
    """One class of one predicted case.

    Attributes:
        condition: arms are compared within a condition, for example "5 shots" or "5 shots, T1+FLAIR".
        draw: number of the draw of training cases.
        label: name of the class.
        dice: in [0, 1]; nan if neither reference nor prediction has the class, 0 if only one of them has it.
        nsd, hd95: see ``surface_scores``; nan if no tolerance was given.
        n_ref, n_pred: voxels of the class in the reference and in the prediction.

    >>> Score("5 shots", 0, "AliceTrainer", "case_7", "liver", 0.91, 0.84, 3.2, 1000, 1040).dice
    0.91
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
) -> dict[str, ClassScores]:
    """Scores of every foreground class of a predicted case, by class; Dice is computed by nnU-Net's own code.

    All numbers are in the geometry of the reference file. Voxels with the ignore label belong to no class in either
    file.

    Args:
        reference, prediction: segmentation files.
        plans_file: nnU-Net's plans, which name the reader of the files.
        dataset_json: its labels are the classes.
        tolerance: of NSD, in mm; None computes Dice only (the others are nan).

    Raises:
        ComparisonError: the prediction is missing, has another shape than the reference, or one of the two contains
            labels that are not in dataset.json.
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
            reference_mask, predicted_mask = (region_or_label_to_mask(a[0], c) & valid for a in (truth, guess))
            surfaces = surface_scores(reference_mask, predicted_mask, properties["spacing"], tolerance)
        rows[names[c]] = ClassScores(float(m["Dice"]), *surfaces, int(m["n_ref"]), int(m["n_pred"]))
    return rows


def require_known_labels(file: Path, array: np.ndarray, dataset_json: dict[str, Any]) -> None:
    """Refuse a segmentation with values that are no label of dataset.json.

    Raises:
        ComparisonError: names file and values.
    """
    known = {v for value in dataset_json["labels"].values() for v in (value if isinstance(value, list) else [value])}
    if unknown := sorted(set(np.unique(array).tolist()) - known):
        msg = (
            f"{file} contains {counted(len(unknown), 'unknown label')}, {', '.join(f'{v:g}' for v in unknown)}; "
            f"dataset.json has {', '.join(f'{v:g}' for v in sorted(known))}. Bring both to the same label set."
        )
        raise ComparisonError(msg)


def _class_names(labels: dict[str, Any], regions: bool) -> dict[int | tuple[int, ...], str]:
    """The name of every class in dataset.json, by nnU-Net's key: a label or a tuple of labels."""
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
