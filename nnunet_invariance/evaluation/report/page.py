"""The report of a comparison: one self-contained page and its tables, rebuilt from the folder alone."""

import html
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.html import bullets, folded, inline, page, table, transfer_table
from nnunet_invariance.evaluation.protocols.arms import STOCK_ITERATIONS
from nnunet_invariance.evaluation.protocols.pretrainings import OWN
from nnunet_invariance.evaluation.report.pictures import draw_case, draw_effects, draw_heat_map, draw_levels
from nnunet_invariance.evaluation.runner.jobs import Job
from nnunet_invariance.evaluation.runner.record import read_json
from nnunet_invariance.evaluation.runner.stored import RECORD, state, stored_jobs, write_tables
from nnunet_invariance.evaluation.scoring.scores import Score, write_csv
from nnunet_invariance.evaluation.statistics.effects import (
    OVERALL,
    SMALLER_IS_BETTER,
    Contrast,
    Effect,
    Level,
    compare,
    levels,
)
from nnunet_invariance.plans.options import BLOCK

PAGE = "report.html"
NAMES = {"dice": "Dice", "nsd": "NSD", "hd95": "HD95 (mm)"}
#: Worst and best test cases that are shown, and the most arms beside each other.
SHOWN_CASES, SHOWN_ARMS = 2, 6
#: The most test sets of which cases are shown.
SHOWN_TESTS = 4
METHODS = """<p>Differences are paired: the same draw of training cases, the same test case. Their 95 % interval is for
other draws and other test cases (crossed bootstrap, widened for few draws); with one draw it is for other test cases
only, and other draws may say otherwise. <em>Coverage</em> is how often such an interval held the truth in simulated
experiments with this number of draws and cases, for several mixtures of variance; 0.95 is what it should be. p:
Wilcoxon's signed-rank test over the test cases, each averaged over the draws, with Holm's correction over the methods
of a family in brackets. Effect: rank-biserial correlation, from -1 (worse in every case) to 1. A class that neither
reference nor prediction has counts in no mean; one that only one of them has counts as Dice 0, NSD 0 and, as HD95, the
diagonal of the image.</p>"""


def write_report(out: Path) -> Path:
    """Write ``report.html``, ``scores.csv``, ``levels.csv``, ``effects.csv`` and the summary of what is finished.

    Cells that are not finished are listed and enter no number.

    Raises:
        ComparisonError: the folder holds no comparison.
    """
    jobs = stored_jobs(out)
    scores = write_tables(out, jobs) if any(job.scores.is_file() for job in jobs) else []
    record = read_json(out / RECORD)
    described = record["comparison"]
    contrasts = [Contrast(c["arm"], c["reference"], c["family"]) for c in described["contrasts"]]
    scores = sorted(scores, key=lambda s: natural(s.condition))
    effects, means = compare(scores, contrasts, described["seed"]), levels(scores, described["seed"])
    write_csv(out / "effects.csv", effects, Effect)
    write_csv(out / "levels.csv", means, Level)
    sections = [
        _head(record, jobs, effects),
        *_results(means, effects),
        _heat_map(means, described["tests"]),
        _cases(jobs, scores),
        _cost(jobs, record),
        _transfer(jobs),
        _made(record, out),
    ]
    text = page(f"{described['protocol']}: {described['dataset']}", "\n".join(sections), width=72)
    atomic_write(out / PAGE, lambda file: file.write(text.encode()))
    return out / PAGE


def natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts 3 shots before 10 shots."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", text) if word]


def _head(record: Mapping[str, Any], jobs: Sequence[Job], effects: Sequence[Effect]) -> str:
    """Title, what came out in a sentence a contrast, and what is not finished."""
    described = record["comparison"]
    title = f"{described['protocol']}: {described['dataset']}, {described['configuration']}, {described['plans']}"
    parts = [f"<h1>{html.escape(title)}</h1>"]
    main = [e for e in effects if e.metric == "dice" and e.label == OVERALL]
    parts.append(bullets(_sentence(e) for e in main) if main else "<p>No contrast can be computed yet.</p>")
    if seen := described["transductive"]:
        parts.append(f'<p class="notice">A pre-training has seen {len(seen)} of the test images (transductive).</p>')
    unfinished = [(job.name, state(job)) for job in jobs if not job.scores.is_file()]
    if unfinished:
        parts.append(f"<h2>Not finished: {len(unfinished)} of {len(jobs)} cells, in no number of this page</h2>")
        parts.append(table(("cell", "state"), unfinished, numbers=0))
    if left_out := described["left_out"]:
        parts.append("<h2>Trainers that do not apply</h2>" + bullets(f"{k} {v}" for k, v in left_out.items()))
    return "\n".join(parts)


def _sentence(e: Effect) -> str:
    draws = "1 draw" if e.draws == 1 else f"{e.draws} draws"
    return (
        f"{e.condition}: {e.arm} against {e.reference}: {e.verdict}, Dice {e.mean:+.3f} "
        f"[{e.low:+.3f}, {e.high:+.3f}] ({draws}, {e.cases} cases)"
    )


def _results(means: Sequence[Level], effects: Sequence[Effect]) -> Iterable[str]:
    """Curves, differences and tables."""
    if not means:
        return
    conditions = list(dict.fromkeys(level.condition for level in means))
    overall = [level for level in means if level.label == OVERALL and level.metric == "dice"]
    yield "<h2>Dice, mean over the classes, with 95 % intervals</h2>"
    yield inline(draw_levels(overall, conditions, "Dice"), "Mean Dice of every arm under every condition")
    if main := [e for e in effects if e.metric == "dice" and e.label == OVERALL]:
        yield "<h2>Paired differences in Dice</h2>"
        yield inline(draw_effects(main, "difference in Dice"), "Paired differences in Dice with 95 % intervals")
    yield METHODS
    for metric in dict.fromkeys(e.metric for e in effects):
        rows = [e for e in effects if e.metric == metric]
        better = "smaller is better" if metric in SMALLER_IS_BETTER else "larger is better"
        yield f"<h2>Differences in {NAMES[metric]}, per class ({better})</h2>"
        head = ("condition", "arm", "against", "class", "verdict", "mean", "95 % interval", "draws x cases", "coverage")
        yield table((*head, "p (Holm)", "effect"), map(_row, rows), 6, [e.verdict.split()[0] for e in rows])
    yield "<h2>Means of the arms</h2>"
    coverage = {(e.draws, e.cases): _coverage(e) for e in effects}
    head = ("condition", "arm", "class", "metric", "mean", "95 % interval", "draws x cases", "coverage")
    yield table(head, ((*_mean(v), coverage.get((v.draws, v.cases), "-")) for v in means), 4)


def _heat_map(means: Sequence[Level], tests: Sequence[Mapping[str, Any]]) -> str:
    """Mean Dice of every class under every condition, where there are several test sets."""
    dice = [level for level in means if level.metric == "dice"]
    if len(tests) < 2 or not dice:
        return ""
    picture = inline(
        draw_heat_map(dice), "Mean Dice of every arm, a row for each condition and a column for each class"
    )
    return f"<h2>Dice of every class under every condition</h2>{picture}"


def _row(e: Effect) -> tuple[str, ...]:
    interval = f"{e.low:+.3f} to {e.high:+.3f}"
    names = (e.condition, e.arm, e.reference, e.label, e.verdict)
    size = f"{e.draws} x {e.cases}"
    return (*names, f"{e.mean:+.3f}", interval, size, _coverage(e), f"{e.p:.3g} ({e.p_holm:.3g})", f"{e.effect:+.2f}")


def _coverage(e: Effect) -> str:
    return f"{e.coverage_low:.2f}-{e.coverage_high:.2f}"


def _mean(v: Level) -> tuple[str, ...]:
    names = (v.condition, v.arm, v.label, NAMES[v.metric])
    return (*names, f"{v.mean:.3f}", f"{v.low:.3f} to {v.high:.3f}", f"{v.draws} x {v.cases}")


def _cases(jobs: Sequence[Job], scores: Sequence[Score]) -> str:
    """The worst and the best test cases of the first subset, as pictures."""
    done = [job for job in jobs if job.scores.is_file()]
    done = [job for job in done if job.subset == done[0].subset]
    if not done:
        return ""
    parts = [f"<h2>Worst and best test cases ({html.escape(done[0].subset.name)})</h2>"]
    if hidden := ", ".join(job.arm.name for job in done[SHOWN_ARMS:]):
        parts.append(f"<p>Not in the pictures, which hold {SHOWN_ARMS} arms: {html.escape(hidden)}</p>")
    done = done[:SHOWN_ARMS]
    for test in done[0].setting.tests[:SHOWN_TESTS]:
        dice = _mean_dice(scores, done[0].condition(test), done[0].subset.draw)
        tested = [case for case in test.cases if case.name in dice and done[0].subset.tests(case)]
        ranked = sorted(tested, key=lambda case: dice[case.name])
        chosen = ranked[:SHOWN_CASES] + ranked[SHOWN_CASES:][-SHOWN_CASES:]
        for case in chosen:
            segmentations = {"reference": _volume(case.label)}
            for job in done:
                segmentations[job.arm.name] = _volume(job.predictions(test) / case.label.name)
            title = f"{case.name} {test.name}, Dice {dice[case.name]:.3f}"
            volumes = [_volume(path) for path in case.images]
            shown = next((v for v in volumes if np.ptp(v) > 0), volumes[0])  # a modality that is missing is constant
            image = draw_case(shown, segmentations, title)
            parts.append(inline(image, f"{title}: image, reference and predictions with contours"))
    return "\n".join(parts)


def _mean_dice(scores: Iterable[Score], condition: str, draw: int) -> dict[str, float]:
    """Mean over arms and classes of every case."""
    values: dict[str, list[float]] = {}
    for s in scores:
        if s.condition == condition and s.draw == draw and not math.isnan(s.dice):
            values.setdefault(s.case, []).append(s.dice)
    return {case: float(np.mean(v)) for case, v in values.items()}


def _volume(path: Path) -> np.ndarray:
    """An image file as (slices, height, width)."""
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return array if array.ndim == 3 else array[None]


def _cost(jobs: Sequence[Job], record: Mapping[str, Any]) -> str:
    """What trainings and pre-trainings took."""
    described, rows = record["comparison"], []
    for arm, group in itertools.groupby(sorted(jobs, key=lambda job: job.arm.name), key=lambda job: job.arm):
        entries = [record["jobs"].get(job.name, {}) for job in group if job.scores.is_file()]
        times = [_minutes([e[step]["seconds"] for e in entries if step in e]) for step in ("train", "predict")]
        start = described["starts_from"].get(arm.name)
        cost = described["pretrainings"].get(start, {})
        before = "-" if cost.get("seconds") is None else f"{cost['seconds'] / 60:.1f} min, {cost['steps']} steps"
        rows.append((arm.name, start or "random weights", before, str(arm.epochs), str(len(entries)), *times))
    head = ("arm", "starts from", "pre-training", "epochs", "trainings", "train (mean)", "predict (mean)")
    machines = (", ".join(f"{key}: {value}" for key, value in m.items() if value) for m in _places(record, "machine"))
    return "<h2>Cost</h2>" + "".join(f"<p>{html.escape(m)}</p>" for m in machines) + table(head, rows, 5)


def _places(record: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """The different machines, or versions, of all commands; the record's own for those that an earlier release ran."""
    first = {what: record[what]}
    steps = [step for job in record["jobs"].values() for step in job.values()]
    found = [place[what] for step in steps for place in step.get("places", [first])] or [first[what]]
    return [place for number, place in enumerate(found) if place not in found[:number]]


def _minutes(seconds: Sequence[float]) -> str:
    return f"{np.mean(seconds) / 60:.1f} min" if seconds else "-"


def _transfer(jobs: Sequence[Job]) -> str:
    """The transfer report of every arm that has one."""
    parts = []
    for arm in dict.fromkeys(job.arm.name for job in jobs):
        files = [job.model / "transfer_report.json" for job in jobs if job.arm.name == arm]
        reports = [report for file in files if "coverage" in (report := read_json(file))]
        if reports:
            parts.append(f"<h3>{html.escape(arm)}</h3>{transfer_table(reports[0])}")
    return "<h2>What was taken from the pre-trainings</h2>" + "\n".join(parts) if parts else ""


def _plans_block(out: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the comparison's own copy of the plans."""
    plans = read_json(out / "nnUNet_preprocessed" / described["dataset"] / f"{described['plans']}.json")
    return plans.get("configurations", {}).get(described["configuration"], {}).get(BLOCK, {})


def _made(record: Mapping[str, Any], out: Path) -> str:
    """Versions, seeds, cases and commands."""
    described = record["comparison"]
    block = _plans_block(out, described)
    iterations = block.get("iterations_per_epoch") or STOCK_ITERATIONS["iterations_per_epoch"]
    seeds = f"seed of draws and intervals: {described['seed']}; training seed in the plans: {block.get('seed', 'none')}"
    mirroring = "yes" if described["mirroring"] else "no"
    facts = [seeds, f"{iterations} iterations per epoch", f"mirroring at prediction: {mirroring}"]
    facts += [f"tolerance of NSD: {described['tolerance']} mm"] if described["tolerance"] is not None else []
    several = _places(record, "versions")
    for package in dict.fromkeys(package for versions in several for package in versions):
        found = dict.fromkeys(versions[package] for versions in several if versions.get(package))
        facts += [f"{package} {' and '.join(found)}"] if found else []
    facts += [f"{name}: sha256 {entry['sha256']}" for name, entry in described["pretrainings"].items()]
    subsets = "\n".join(
        f"{s['name']}: train {' '.join(s['train'])}; val {' '.join(s['val'])}" for s in described["subsets"]
    )
    tests = "\n".join(f"test {t['name']}: {' '.join(t['cases'])}" for t in described["tests"])
    jobs = [*map(read_json, sorted((out / OWN).glob("*.json"))), *record["jobs"].values()]
    commands = "\n".join(command for job in jobs for step in job.values() for command in step["commands"])
    parts = [bullets(facts), folded("Cases", f"{subsets}\n{tests}"), folded("Commands", commands)]
    return "<h2>How it was made</h2>" + "\n".join(parts)
