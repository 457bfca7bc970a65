"""Collect the scores of all comparisons, and write the tables of the results page."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import write_file
from benchmarks.studies.few_labels.tasks import TASKS
from benchmarks.tables import markdown
from nnunet_invariance.common.csv_files import write_csv
from nnunet_invariance.evaluation.frames import compare
from nnunet_invariance.evaluation.runner.stored import state, stored_jobs
from nnunet_invariance.evaluation.scoring.scores import Score, read_scores

RESULTS = Path(__file__).parents[2] / "results" / "few-labels"
#: Arms that every other arm is compared with: plain nnU-Net, also without mirroring, and an equal network without
#: pre-training.
CONTROLS = ("plain", "plain-auto", "plain-none", "random-summed")


def publish(work: Path, iterations: int) -> None:
    """Write scores.csv of every comparison and one page of tables to the results folder of a length of training."""
    out, sections = RESULTS / f"{iterations}_iterations", []
    for folder in sorted((work / "comparison").glob("*")):
        if (folder / "scores.csv").is_file():
            write_csv(out / folder.name / "scores.csv", read_scores(folder / "scores.csv"), Score)
            sections.append(section(folder))
    if sections:
        write_file(out / "tables.md", "\n\n".join(sections).encode() + b"\n")


def section(folder: Path) -> str:
    """Heading, table of means, table of differences to the controls, and the cells that did not run."""
    dataset, _, shots = folder.name.rpartition("_")
    name = next(name for name, task in TASKS.items() if task.dataset == dataset)
    scores = pd.read_csv(folder / "scores.csv")
    missing = [f"- not run: {job.name}: {state(job)}" for job in stored_jobs(folder) if not job.finished]
    cost = seconds(folder)
    parts = [f"## {name}, {shots} labelled case(s)", means(scores, cost), differences(scores), *missing]
    return "\n\n".join(part for part in parts if part)


def means(scores: pd.DataFrame, cost: dict[str, float]) -> str:
    """Mean Dice and NSD of every arm and draw, the worst case, and the minutes of training."""
    lines = []
    for arm, rows in scores.groupby("arm", sort=False):
        draws = [f"{rows[rows.draw == draw].dice.mean():.3f}" for draw in sorted(rows.draw.unique())]
        worst = rows.groupby(["draw", "case"]).dice.mean().min()
        figures = [f"{rows.dice.mean():.3f}", f"{rows.nsd.mean():.3f}", f"{worst:.3f}", " ".join(draws)]
        lines.append([str(arm), *figures, f"{cost.get(str(arm), np.nan) / 60:.1f}"])
    return markdown(["arm", "Dice", "NSD", "worst case", "Dice by draw", "minutes"], lines)


def differences(scores: pd.DataFrame) -> str:
    """Paired differences in Dice to every control that was run, with intervals."""
    lines: list[list[str]] = []
    arms = list(dict.fromkeys(scores.arm))
    for control in (name for name in CONTROLS if name in arms):
        others = [arm for arm in arms if arm != control]
        lines += list(_lines(compare(scores, control, arms=others), control)) if others else []
    return markdown(["arm", "against", "difference", "draws x cases", "verdict"], lines) if lines else ""


def _lines(frame: pd.DataFrame, control: str) -> Iterable[list[str]]:
    rows = frame[(frame.metric == "dice") & (frame["class"] == "all classes")]
    for row in rows.itertuples():
        difference = f"{row.mean:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        yield [row.arm, control, difference, f"{row.draws} x {row.cases}", row.verdict]


def seconds(folder: Path) -> dict[str, float]:
    """Mean wall time of a training by arm, from the records of the cells."""
    found: dict[str, list[float]] = {}
    for job in stored_jobs(folder):
        if job.record.is_file():
            entry = pd.read_json(job.record, typ="series").get("train")
            if entry:
                found.setdefault(job.arm.name, []).append(entry["seconds"])
    return {arm: float(np.mean(values)) for arm, values in found.items()}
