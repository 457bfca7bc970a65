"""Dice per case and class, its CSV file, and paired differences to a baseline."""

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.weights.atomic import atomic_write


@dataclass(frozen=True)
class Score:
    """One class of one predicted case.

    Attributes:
        dice: in [0, 1]; nan when neither reference nor prediction has the class, 0 when only one of them has it.
        n_ref, n_pred: voxels of the class in the reference and in the prediction.
    """

    shots: int
    draw: int
    trainer: str
    case: str
    label: str
    dice: float
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

    shots: int
    trainer: str
    label: str
    n: int
    dice_mean: float
    dice_sd: float
    baseline: str
    pairs: int
    difference_mean: float
    difference_sd: float


def score_case(
    reference: Path, prediction: Path, plans_file: Path, dataset_json: dict[str, Any]
) -> dict[str, tuple[float, int, int]]:
    """Dice, reference voxels and predicted voxels of every foreground class, by nnU-Net's own metric code.

    Raises:
        ComparisonError: the prediction is missing or has another shape than the reference.
    """
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(str(plans_file))
    labels = plans.get_label_manager(dataset_json)
    classes = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    names = _class_names(dataset_json["labels"], labels.has_regions)
    if not prediction.is_file():
        raise ComparisonError(
            f"{prediction} does not exist, so {reference.name} cannot be scored. Run the comparison again."
        )
    try:
        reader = plans.image_reader_writer_class()
        metrics = compute_metrics(str(reference), str(prediction), reader, classes, labels.ignore_label)["metrics"]
    except ValueError as error:
        msg = f"{prediction} cannot be compared with {reference} ({error}). Both must have the shape of the image."
        raise ComparisonError(msg) from error
    return {names[c]: (float(m["Dice"]), int(m["n_ref"]), int(m["n_pred"])) for c, m in metrics.items()}


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
    """Mean Dice per shots, arm and class, and the paired difference to ``baseline``; one row per combination."""
    groups: dict[tuple[int, str, str], dict[tuple[int, str], float]] = {}
    for s in scores:
        group = groups.setdefault((s.shots, s.trainer, s.label), {})
        if not math.isnan(s.dice):
            group[s.draw, s.case] = s.dice
    result = []
    for (shots, trainer, label), dice in groups.items():
        reference = groups.get((shots, baseline, label), {})
        differences = [value - reference[pair] for pair, value in dice.items() if pair in reference]
        values = list(dice.values())
        numbers = (len(values), *_mean_and_sd(values), baseline, len(differences), *_mean_and_sd(differences))
        result.append(Summary(shots, trainer, label, *numbers))
    return result


def _mean_and_sd(values: list[float]) -> tuple[float, float]:
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan


def format_summary(summary: Sequence[Summary]) -> str:
    """The summary as a text table."""
    width = max(len(s.trainer) for s in summary)
    label_width = max(5, *(len(s.label) for s in summary))
    head = f"{'shots':>5}  {'trainer':{width}}  {'label':{label_width}}  {'n':>4}  {'Dice':>14}  "
    lines = [f"{head}difference to {summary[0].baseline}"]
    for s in summary:
        own = f"{s.dice_mean:.3f} sd {s.dice_sd:.3f}"
        paired = "-" if s.trainer == s.baseline else f"{s.difference_mean:+.3f} sd {s.difference_sd:.3f} (n={s.pairs})"
        lines.append(f"{s.shots:>5}  {s.trainer:{width}}  {s.label:{label_width}}  {s.n:>4}  {own:>14}  {paired}")
    return "\n".join(lines) + "\n"
