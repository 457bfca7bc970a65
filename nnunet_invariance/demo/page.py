"""The page of a demo: one self-contained HTML file, and the sections that demos share."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.html import TRANSFER_FORM, details, inline, lead, notice, page, table, transfer_table
from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.demo.next_steps import OWN_DATASET
from nnunet_invariance.demo.pictures import draw_cases, draw_predictions, draw_training
from nnunet_invariance.demo.steps import PLANS, SEED, Demo, Step
from nnunet_invariance.evaluation.protocols.checkpoints import warnings_of
from nnunet_invariance.evaluation.report.names import short_names
from nnunet_invariance.evaluation.report.pictures import draw_effects
from nnunet_invariance.evaluation.report.results import Results, compute_results
from nnunet_invariance.evaluation.report.tables import headline
from nnunet_invariance.evaluation.runner.jobs import Job
from nnunet_invariance.evaluation.runner.stored import stored_jobs
from nnunet_invariance.evaluation.scoring.scores import read_scores
from nnunet_invariance.evaluation.statistics.effects import Contrast

NOTICE = """<p class="notice"><strong>This page shows the pipeline and does not measure the method.</strong> The images
are synthetic, the networks are tiny, the runs take about a minute, and a few test cases with one seed cannot show
whether the method is better than plain nnU-Net.</p>"""
COMMANDS = """<p>The commands ran in the folder of this page, with nnU-Net's three environment variables set to
folders in it. Training and prediction ran in <code>comparison</code>, which has its own preprocessed and
results folders.</p>"""


@dataclass(frozen=True)
class Section:
    """A heading (text) and its content (HTML).

    >>> Section("The data", "<p>Text</p>").heading
    'The data'
    """

    heading: str
    body: str


@dataclass(frozen=True)
class Page:
    """Title and sections of a demo.

    >>> len(Page("A demo", [Section("The data", "")]).sections)
    1
    """

    title: str
    sections: Sequence[Section]


def write_page(out: Path, content: Page, steps: Sequence[Step], next_steps: Sequence[str] = ()) -> Path:
    """Write the sections, the commands of the demo and those for other data to ``out/index.html``; returns its path."""
    commands = details(
        "Every command of this demo, and the time of every step", "\n".join([COMMANDS, *map(_step, steps)])
    )
    sections = [*content.sections, Section("Commands of this demo", commands), _next_section(next_steps)]
    parts = [f"<h1>{html.escape(content.title)}</h1>", NOTICE]
    parts += [f"<h2>{html.escape(section.heading)}</h2>\n{section.body}" for section in sections]
    target = out / "index.html"
    text = page(f"nnunet-invariance demo: {content.title}", "\n".join(parts), width=60)
    atomic_write(target, lambda file: file.write(text.encode()))
    return target


def data_section(text: str, raws: Sequence[Path]) -> Section:
    """Show up to six labelled cases of each raw data set, with the outlines of their labels."""
    parts = [f"<p>{html.escape(text)}</p>"]
    for raw in raws:
        parts += [f"<h3>{html.escape(raw.name)}</h3>"] if len(raws) > 1 else []
        parts.append(inline(draw_cases(raw), "Slices of labelled cases with the outlines of their labels"))
    return Section("The data", "\n".join(parts))


def pretraining_section(heading: str, folder: Path) -> Section:
    """Show the curves of a pre-training and what the network sees, and the warnings of its log in red."""
    picture = (folder / "progress.png").read_bytes()
    curves = inline(picture, "Losses and diagnostics of the pre-training, epoch by epoch")
    parts = [*map(notice, warnings_of(folder)), curves]
    if (samples := folder / "samples.png").is_file():
        parts.append(inline(samples.read_bytes(), "What the network sees in the first batch, at the end"))
    return Section(heading, "\n".join(parts))


def transfer_section(demo: Demo) -> Section:
    """Table of the weights that the first arm loaded, from its transfer report."""
    report = read_json(stored_jobs(demo.comparison)[0].model / "transfer_report.json", form=TRANSFER_FORM)
    return Section("Weights that the trainer loaded", transfer_table(report))


def training_section(demo: Demo) -> Section:
    """Show the training curves of all arms."""
    jobs = stored_jobs(demo.comparison)
    folders = {name: job.model for name, job in zip(_names(jobs), jobs, strict=True)}
    alternative = "Training loss and validation Dice of all trainers, epoch by epoch"
    return Section("Training with nnUNetv2_train", inline(draw_training(folders), alternative))


def prediction_section(demo: Demo) -> Section:
    """Show reference and predictions of every test set."""
    jobs, pictures = stored_jobs(demo.comparison), []
    for test in jobs[0].setting.tests:
        folders = {name: job.predictions(test) for name, job in zip(_names(jobs), jobs, strict=True)}
        title = f"<h3>{html.escape(test.name)}</h3>\n" if test.name else ""
        picture = draw_predictions(test.cases, folders)
        pictures.append(
            title + inline(picture, "Test images with the outlines of the reference and of each prediction")
        )
    return Section("Test cases, predicted with nnUNetv2_predict", "\n".join(pictures))


def score_section(demo: Demo) -> Section:
    """Show the difference to the last arm in one sentence, as a figure, and with the mean Dice of each class."""
    jobs = stored_jobs(demo.comparison)
    n_test = sum(len(test.cases) for test in jobs[0].setting.tests)
    classes = details("Mean Dice of every class", score_table(*_results(demo)))
    return Section(f"Dice on the {n_test} test cases", verdict(demo) + classes)


def verdict(demo: Demo) -> str:
    """The differences in Dice to the last arm, in one sentence and as a figure."""
    results, _ = _results(demo)
    names = short_names(list(dict.fromkeys(s.arm for s in results.scores)), PLANS)
    picture = draw_effects(results.main_effects, "difference in Dice, with 95 % interval", names)
    alternative = "Difference in Dice to the trainer without the method, with 95 % interval"
    figure = inline(picture, alternative, narrow=True)
    return f"{lead(headline(results.main_effects, names))}\n{figure}"


def _names(jobs: Sequence[Job]) -> list[str]:
    """Short names of the arms of jobs, in their order."""
    names = short_names(list(dict.fromkeys(job.arm.name for job in jobs)), PLANS)
    return [names[job.arm.name] for job in jobs]


def _results(demo: Demo) -> tuple[Results, str]:
    """Statistics of the scores, with a contrast of every arm with the last one, and the name of the last one."""
    rows = read_scores(demo.comparison / "scores.csv")
    baseline = stored_jobs(demo.comparison)[-1].arm.name
    contrasts = [Contrast(arm, baseline, baseline) for arm in dict.fromkeys(s.arm for s in rows) if arm != baseline]
    return compute_results(rows, contrasts, SEED), baseline


def score_table(results: Results, baseline: str) -> str:
    """Mean Dice of each trainer and class under each condition, with the paired difference to ``baseline``."""
    differences = {
        (e.condition, e.arm, e.label): f"{e.mean:+.3f} [{e.low:+.3f}, {e.high:+.3f}]"
        for e in results.effects
        if e.metric == "dice"
    }
    names = short_names(list(dict.fromkeys(s.arm for s in results.scores)), PLANS)
    lines = [
        (
            *(m.condition, names[m.arm], m.label, f"{m.mean:.3f} [{m.low:.3f}, {m.high:.3f}]"),
            differences.get((m.condition, m.arm, m.label), ""),
        )
        for m in results.means
        if m.metric == "dice"
    ]
    head = ("condition", "trainer", "class", "mean Dice [95 % interval]", f"difference to {names[baseline]}")
    return table(head, lines, numbers=2)


def _next_section(commands: Sequence[str]) -> Section:
    """List the commands for the user's own data."""
    text = (
        f"<p>Put your data into <code>nnUNet_raw/{OWN_DATASET}</code> in nnU-Net's format, and run (with "
        "<code>-device cpu</code> if there is no GPU):</p>"
    )
    return Section("The same with your data", f"{text}<pre>{html.escape(chr(10).join(commands))}</pre>")


def _step(step: Step) -> str:
    commands = f"<pre>{html.escape(chr(10).join(step.commands))}</pre>" if step.commands else ""
    return f"<p>{html.escape(step.name)}: {step.seconds:.0f} s</p>{commands}"
