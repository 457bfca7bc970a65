"""Dice, NSD and HD95 per case and class, their CSV file, and means with paired differences to a baseline."""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_invariance.common.atomic import atomic_write
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


@dataclass(frozen=True)
class Summary:
    """One class of one arm over all its cases and draws, and its paired difference to the baseline arm.

    Attributes:
        n, dice_mean, dice_sd: over the rows whose Dice is a number.
        pairs: (draw, case) pairs in which both arms have a number; the differences are taken over these.
        difference_mean, difference_sd: arm minus baseline; sd is the sample standard deviation.
    """

    condition: str
    arm: str
    label: str
    n: int
    dice_mean: float
    dice_sd: float
    baseline: str
    pairs: int
    difference_mean: float
    difference_sd: float


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


def write_csv(path: Path, rows: Sequence[Score] | Sequence[Summary], kind: type) -> None:
    """Write dataclass rows as CSV, atomically; numbers in full precision, nan as ``nan``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[f.name for f in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def read_scores(path: Path) -> list[Score]:
    """Read what ``write_csv`` wrote."""
    with path.open(newline="") as file:
        return [Score(**{f.name: f.type(row[f.name]) for f in fields(Score)}) for row in csv.DictReader(file)]


def summarize(scores: Sequence[Score], baseline: str) -> list[Summary]:
    """Mean Dice per condition, arm and class, and the paired difference to ``baseline``; one row per combination."""
    groups: dict[tuple[str, str, str], dict[tuple[int, str], float]] = {}
    for s in scores:
        group = groups.setdefault((s.condition, s.arm, s.label), {})
        if not math.isnan(s.dice):
            group[s.draw, s.case] = s.dice
    result = []
    for (condition, arm, label), dice in groups.items():
        reference = groups.get((condition, baseline, label), {})
        differences = [value - reference[pair] for pair, value in dice.items() if pair in reference]
        values = list(dice.values())
        numbers = (len(values), *_mean_and_sd(values), baseline, len(differences), *_mean_and_sd(differences))
        result.append(Summary(condition, arm, label, *numbers))
    return result


def _mean_and_sd(values: list[float]) -> tuple[float, float]:
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan


def format_summary(summary: Sequence[Summary]) -> str:
    """The summary as a text table."""
    columns = ("condition", "arm", "label")
    widths = [max(len(name), *(len(getattr(s, name)) for s in summary)) for name in columns]

    def start(cells: Iterable[str]) -> str:
        return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True))

    lines = [f"{start(columns)}  {'n':>4}  {'Dice':>14}  difference to {summary[0].baseline}"]
    for s in summary:
        own = f"{s.dice_mean:.3f} sd {s.dice_sd:.3f}"
        paired = "-" if s.arm == s.baseline else f"{s.difference_mean:+.3f} sd {s.difference_sd:.3f} (n={s.pairs})"
        lines.append(f"{start(getattr(s, name) for name in columns)}  {s.n:>4}  {own:>14}  {paired}")
    return "\n".join(lines) + "\n"
