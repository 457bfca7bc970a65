"""The report of a comparison: one self-contained HTML page, rebuilt from the comparison's folder alone."""

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.html import bullets, details, inline, lead, notice, page, table
from nnunet_invariance.evaluation.report.cases import case_section
from nnunet_invariance.evaluation.report.names import short_names
from nnunet_invariance.evaluation.report.pictures import draw_effects, draw_heat_map, draw_means
from nnunet_invariance.evaluation.report.provenance import (
    cost_section,
    making_section,
    transfer_section,
    warning_section,
)
from nnunet_invariance.evaluation.report.results import Results, write_results
from nnunet_invariance.evaluation.report.tables import (
    READING,
    arm_legend,
    headline,
    ranking_table,
    statistics,
    verdict_table,
)
from nnunet_invariance.evaluation.runner.jobs import Job
from nnunet_invariance.evaluation.runner.record import read_record
from nnunet_invariance.evaluation.runner.stored import RECORD, state, stored_jobs
from nnunet_invariance.evaluation.scoring.metrics import METRICS

PAGE = "report.html"


def write_report(out: Path) -> Path:
    """Write ``report.html``, the CSV tables and ``summary.txt`` of what is finished; returns the page.

    Cells that are not finished are listed on the page and enter no number. The page needs no other file.

    Args:
        out: folder of a comparison.

    Raises:
        ComparisonError: the folder contains no comparison.
    """
    jobs = stored_jobs(out)
    results = write_results(out)
    record = read_record(out / RECORD)
    described = record["comparison"]
    names = short_names(list(described["arms"]), described["plans"])
    sections = [
        _head(described, results, names),
        warning_section(described),
        *_state(described, jobs),
        *_comparisons(results, names),
        _heat_map(results, described["tests"], names),
        case_section(jobs, results.scores, names),
        "<h2>Statistics</h2>",
        *statistics(results, names),
        cost_section(jobs, record),
        transfer_section(jobs),
        making_section(record, out),
    ]
    text = page(f"{described['protocol']}: {described['dataset']}", "\n".join(sections), width=72)
    atomic_write(out / PAGE, lambda file: file.write(text.encode()))
    return out / PAGE


def _head(described: Mapping[str, Any], results: Results, names: Mapping[str, str]) -> str:
    """Title, the verdict in one sentence, the differences as a figure, and what the short names mean."""
    title = f"{described['protocol']}: {described['dataset']}, {described['configuration']}, {described['plans']}"
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts.append(lead(headline(results.main_effects, names)))
    if results.main_effects:
        picture = draw_effects(results.main_effects, "difference in Dice, with 95 % interval", names)
        parts.append(inline(picture, "Paired differences in Dice with 95 % intervals and verdicts", narrow=True))
    parts.append(arm_legend(described["arms"], described["starts_from"], names))
    return "\n".join(parts)


def _state(described: Mapping[str, Any], jobs: Sequence[Job]) -> Iterator[str]:
    """What a reader has to know before the numbers: seen test images, unfinished cells, trainers that do not apply."""
    if seen := described["transductive"]:
        images = "1 test image" if len(seen) == 1 else f"{len(seen)} test images"
        yield notice(f"A pre-training, or learning without labels, has seen {images} (transductive).")
    if unfinished := [(job.name, state(job)) for job in jobs if not job.finished]:
        yield f"<h2>Not finished: {len(unfinished)} of {len(jobs)} cells (they enter no number of this page)</h2>"
        yield table(("cell", "state"), unfinished, numbers=0)
    if left_out := described["left_out"]:
        yield "<h2>Trainers that do not apply</h2>" + bullets(f"{k} {v}" for k, v in left_out.items())


def _comparisons(results: Results, names: Mapping[str, str]) -> Iterator[str]:
    """The verdict of every contrast with its explanation, and the mean Dice of the arms with their ranking."""
    if results.main_effects:
        yield "<h2>Verdict of every comparison</h2>"
        yield verdict_table(results.main_effects, names)
        yield details("What do the verdict, the interval and P(false claim) mean?", READING)
    if results.main_means:
        yield "<h2>Mean Dice over the classes, with 95 % intervals</h2>"
        picture = draw_means(results.main_means, results.conditions, "Dice (larger is better)", names)
        yield inline(picture, "Mean Dice of every arm under every condition", narrow=True)
    if ranking := ranking_table(results, names, METRICS["dice"]):
        yield details("Ranking of the arms", ranking)


def _heat_map(results: Results, tests: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Mean Dice of every class under every condition; "" for one test set."""
    dice = [mean for mean in results.means if mean.metric == "dice"]
    if len(tests) < 2 or not dice:
        return ""
    alternative = "Mean Dice of every arm, with a row per condition and a column per class"
    return f"<h2>Dice of every class under every condition</h2>{inline(draw_heat_map(dice, names), alternative)}"
