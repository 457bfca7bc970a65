"""The worst, median and best test case of a comparison side by side, with outlines."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_invariance.common.html import inline
from nnunet_invariance.common.pictures import class_colours
from nnunet_invariance.evaluation.protocols.cases import LabelledCase
from nnunet_invariance.evaluation.report.pictures import ShownCase, draw_cases
from nnunet_invariance.evaluation.runner.jobs import CaseSet, Job
from nnunet_invariance.evaluation.scoring.scores import Score

#: The largest number of arms and of test sets that are shown.
SHOWN_ARMS, SHOWN_TESTS = 6, 4
#: Mean Dice over the classes, of every arm and case.
CaseDice = dict[str, dict[str, float]]


def case_section(jobs: Sequence[Job], scores: Sequence[Score], names: Mapping[str, str]) -> str:
    """The worst, median and best test case of the first subset that has a finished cell; "" without one."""
    done = [job for job in jobs if job.finished]
    done = [job for job in done if job.subset == done[0].subset]
    if not done:
        return ""
    parts = [f"<h2>Worst, median and best test case ({html.escape(done[0].subset.name)})</h2>"]
    parts.append("<p>Cases are ranked by their mean Dice over the classes and the trainers.</p>")
    if hidden := ", ".join(names.get(job.arm.name, job.arm.name) for job in done[SHOWN_ARMS:]):
        parts.append(f"<p>The pictures show {SHOWN_ARMS} arms; not shown: {html.escape(hidden)}</p>")
    colours = class_colours(done[0].setting.dataset_json["labels"])
    for test in done[0].setting.tests[:SHOWN_TESTS]:
        dice = _dice(scores, done[0].condition(test), done[0].subset.draw)
        mean = {case: float(np.mean(list(of_arms.values()))) for case, of_arms in dice.items()}
        tested = [case for case in test.cases if case.name in mean and done[0].subset.tests(case)]
        chosen = _ranked(sorted(tested, key=lambda case: mean[case.name]))
        shown = [_shown(rank, case, test, dice[case.name], done[:SHOWN_ARMS], names) for rank, case in chosen.items()]
        if shown:
            where = f" of {test.name}" if test.name else ""
            alternative = f"The {', '.join(chosen)} test case{where}: image, reference and predictions with outlines"
            parts += [f"<h3>{html.escape(test.name)}</h3>"] if test.name else []
            parts.append(inline(draw_cases(shown, colours), alternative))
    return "\n".join(parts)


def _ranked(cases: Sequence[LabelledCase]) -> dict[str, LabelledCase]:
    """The first, the middle and the last case; of two cases the first and the last, and one case by itself."""
    if len(cases) < 3:
        return dict(zip(("worst", "best"), cases, strict=False))
    return {"worst": cases[0], "median": cases[len(cases) // 2], "best": cases[-1]}


def _shown(
    rank: str,
    case: LabelledCase,
    test: CaseSet,
    dice: Mapping[str, float],
    jobs: Sequence[Job],
    names: Mapping[str, str],
) -> ShownCase:
    """A case with its reference and the prediction of every arm."""
    segmentations = {"reference": _volume(case.label)}
    for job in jobs:
        name, own = names.get(job.arm.name, job.arm.name), dice.get(job.arm.name, math.nan)
        title = name if math.isnan(own) else f"{name}: Dice {own:.2f}"
        segmentations[title] = _volume(job.predictions(test) / case.label.name)
    volumes = [_volume(path) for path in case.images]
    image = next((v for v in volumes if np.ptp(v) > 0), volumes[0])  # the image of a missing modality is constant
    return ShownCase(f"{rank}: {case.name}", image, segmentations)


def _dice(scores: Iterable[Score], condition: str, draw: int) -> CaseDice:
    """Mean Dice over the classes, by case and by arm."""
    values: dict[str, dict[str, list[float]]] = {}
    for s in scores:
        if s.condition == condition and s.draw == draw and not math.isnan(s.dice):
            values.setdefault(s.case, {}).setdefault(s.arm, []).append(s.dice)
    return {case: {arm: float(np.mean(v)) for arm, v in arms.items()} for case, arms in values.items()}


def _volume(path: Path) -> np.ndarray:
    """An image file as (slices, height, width)."""
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return array if array.ndim == 3 else array[None]
