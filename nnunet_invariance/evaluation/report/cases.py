"""The worst and the best test cases of a comparison, as pictures with contours."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_invariance.common.html import inline
from nnunet_invariance.evaluation.protocols.cases import LabelledCase
from nnunet_invariance.evaluation.report.pictures import colour_of, draw_case
from nnunet_invariance.evaluation.report.tables import class_legend
from nnunet_invariance.evaluation.runner.jobs import CaseSet, Job
from nnunet_invariance.evaluation.scoring.scores import Score

#: Number of worst and of best test cases, and the largest number of arms side by side and of test sets.
SHOWN_CASES, SHOWN_ARMS, SHOWN_TESTS = 2, 6, 4


def case_section(jobs: Sequence[Job], scores: Sequence[Score], names: Mapping[str, str]) -> str:
    """The worst and the best test cases of the first subset that has a finished cell; "" without one."""
    done = [job for job in jobs if job.finished]
    done = [job for job in done if job.subset == done[0].subset]
    if not done:
        return ""
    parts = [f"<h2>Worst and best test cases ({html.escape(done[0].subset.name)})</h2>"]
    parts.append(class_legend(class_colours(done[0].setting.dataset_json["labels"])))
    if hidden := ", ".join(names.get(job.arm.name, job.arm.name) for job in done[SHOWN_ARMS:]):
        parts.append(f"<p>The pictures show {SHOWN_ARMS} arms; not shown: {html.escape(hidden)}</p>")
    for test in done[0].setting.tests[:SHOWN_TESTS]:
        dice = _mean_dice(scores, done[0].condition(test), done[0].subset.draw)
        tested = [case for case in test.cases if case.name in dice and done[0].subset.tests(case)]
        ranked = sorted(tested, key=lambda case: dice[case.name])
        chosen = ranked[:SHOWN_CASES] + ranked[SHOWN_CASES:][-SHOWN_CASES:]
        parts += [_picture(case, test, dice[case.name], done[:SHOWN_ARMS], names) for case in chosen]
    return "\n".join(parts)


def class_colours(labels: Mapping[str, Any]) -> dict[str, str]:
    """Colour of the outline of every class of a dataset.json whose label is one value."""
    values = {name: value[0] if isinstance(value, list) else value for name, value in labels.items()}
    return {name: colour_of(int(value)) for name, value in values.items() if int(value) and name != "ignore"}


def _picture(case: LabelledCase, test: CaseSet, dice: float, jobs: Sequence[Job], names: Mapping[str, str]) -> str:
    segmentations = {"reference": _volume(case.label)}
    for job in jobs:
        name = names.get(job.arm.name, job.arm.name)
        segmentations[name] = _volume(job.predictions(test) / case.label.name)
    volumes = [_volume(path) for path in case.images]
    shown = next((v for v in volumes if np.ptp(v) > 0), volumes[0])  # the image of a missing modality is constant
    title = ", ".join(filter(None, (case.name, test.name, f"Dice {dice:.3f}")))
    return inline(draw_case(shown, segmentations, title), f"{title}: image, reference and predictions with contours")


def _mean_dice(scores: Iterable[Score], condition: str, draw: int) -> dict[str, float]:
    """Mean Dice of every case over arms and classes."""
    values: dict[str, list[float]] = {}
    for s in scores:
        if s.condition == condition and s.draw == draw and not math.isnan(s.dice):
            values.setdefault(s.case, []).append(s.dice)
    return {case: float(np.mean(v)) for case, v in values.items()}


def _volume(path: Path) -> np.ndarray:
    """An image file as (slices, height, width)."""
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return array if array.ndim == 3 else array[None]
