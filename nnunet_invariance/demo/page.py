"""The demo's page: one self-contained HTML file with pictures, curves, the transfer report, the table and commands."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_invariance.demo.data import ENDING, LABELS
from nnunet_invariance.evaluation.html import inline, page, table, transfer_table
from nnunet_invariance.evaluation.pictures import COLOURS, STYLE, panels, png, show
from nnunet_invariance.evaluation.scores import read_scores, summarize
from nnunet_invariance.weights.atomic import atomic_write
from nnunet_invariance.weights.foreign import open_foreign

if TYPE_CHECKING:
    from nnunet_invariance.demo.run import Step

PAGE = """<h1>{method}: from unlabelled images to a scored segmentation</h1>
<p class="notice"><strong>This page shows the pipeline and is no evidence.</strong> The images are synthetic, the
networks are tiny, the runs last about a minute, and {n_test} test cases with one seed decide nothing about the
method.</p>
<h2>The data</h2>
<p>Every case has the same organs in another contrast. Labelled: {organ} and {core}.</p>
{data}
<h2>Pre-training, without labels</h2>
{pretraining}
<h2>What the trainer took from it</h2>
{transfer}
<h2>Training with nnUNetv2_train</h2>
{training}
<h2>Test cases, predicted with nnUNetv2_predict</h2>
{predictions}
<h2>Dice on the {n_test} test cases</h2>
{scores}
<h2>What was run</h2>
<p>All in the folder of this page, with nnU-Net's three variables pointing into it; the training and prediction commands
run in <code>comparison</code>, which has its own preprocessed and results folders.</p>
{steps}
"""


def write_page(out: Path, method: str, arms: Sequence[str], steps: Sequence["Step"]) -> Path:
    """Draw everything that a demo left in ``out``, the method's arm first in ``arms``; returns ``out/index.html``."""
    comparison = out / "comparison"
    record = json.loads((comparison / "comparison.json").read_text())["comparison"]
    raw = out / "nnUNet_raw" / record["dataset"]
    folders = {arm: _fold_folder(comparison, arm, record) for arm in arms}
    pretraining = out / "nnUNet_results" / record["dataset"] / "pretraining"
    progress = pretraining / f"{method}__{record['plans']}__{record['configuration']}" / "progress.png"
    report = json.loads((folders[arms[0]] / "transfer_report.json").read_text())
    body = PAGE.format(
        method=html.escape(method),
        n_test=len(record["tests"][0]["cases"]),
        organ=_coloured(1),
        core=_coloured(2),
        data=inline(draw_cases(raw), "Middle slices of six training cases with the outlines of their labels"),
        pretraining=inline(progress.read_bytes(), "Losses and diagnostics of the pre-training, epoch by epoch"),
        transfer=transfer_table(report),
        training=inline(draw_training(folders), "Training loss and validation Dice of both trainers, epoch by epoch"),
        predictions=inline(
            draw_predictions(raw, comparison, record, arms), "Test images with reference and predicted outlines"
        ),
        scores=score_table(comparison / "scores.csv", baseline=arms[-1]),
        steps="\n".join(_step(step) for step in steps),
    )
    target = out / "index.html"
    text = page(f"nnunet-invariance demo: {method}", body, width=60)
    atomic_write(target, lambda file: file.write(text.encode()))
    return target


def _fold_folder(comparison: Path, arm: str, record: dict[str, Any]) -> Path:
    results = comparison / "arms" / arm / "nnUNet_results" / record["dataset"]
    return results / f"{arm}__{record['plans']}__{record['configuration']}" / "fold_0"


def score_table(scores: Path, baseline: str) -> str:
    """Mean Dice of each trainer and class, with the paired difference to ``baseline``."""
    rows = []
    for s in summarize(read_scores(scores), baseline):
        difference = "" if s.arm == baseline else f"{s.difference_mean:+.3f} (sd {s.difference_sd:.3f}, n={s.pairs})"
        rows.append((s.arm, s.label, f"{s.dice_mean:.3f}", f"{s.dice_sd:.3f}", difference))
    return table(("trainer", "class", "mean", "sd", f"paired difference to {baseline}"), rows, numbers=3)


def _step(step: "Step") -> str:
    commands = f"<pre>{html.escape(chr(10).join(step.commands))}</pre>" if step.commands else ""
    return f"<p>{html.escape(step.name)}: {step.seconds:.0f} s</p>{commands}"


def _coloured(label: int) -> str:
    name = next(name for name, value in LABELS.items() if value == label)
    return f'<span style="border-bottom: 3px solid {COLOURS[label - 1]}">{html.escape(name)}</span>'


def draw_cases(raw: Path) -> bytes:
    """Six training cases, each with its outlines, as PNG."""
    labels = sorted((raw / "labelsTr").glob(f"*{ENDING}"))[:6]
    figure, axes = panels(1, len(labels))
    for axis, path in zip(axes[0], labels, strict=True):
        name = path.name[: -len(ENDING)]
        segmentation = _read(path)
        index = _best_slice(segmentation)
        show(axis, _read(raw / "imagesTr" / f"{name}_0000{ENDING}")[index], segmentation[index], name)
    return png(figure)


def draw_predictions(raw: Path, comparison: Path, record: dict[str, Any], arms: Sequence[str]) -> bytes:
    """A row a test case: image, reference outlines, and the outlines each arm predicted, as PNG."""
    cases = record["tests"][0]["cases"]
    figure, axes = panels(len(cases), 2 + len(arms))
    for row, case in zip(axes, cases, strict=True):
        image, reference = _read(raw / "imagesTs" / f"{case}_0000{ENDING}"), _read(raw / "labelsTs" / f"{case}{ENDING}")
        index = _best_slice(reference)
        show(row[0], image[index], np.zeros_like(reference[index]), case)
        show(row[1], image[index], reference[index], "reference")
        for axis, arm in zip(row[2:], arms, strict=True):
            prediction = comparison / "arms" / arm / record["subsets"][0]["name"] / "predictions" / f"{case}{ENDING}"
            show(axis, image[index], _read(prediction)[index], arm)
    return png(figure)


def draw_training(folders: dict[str, Path]) -> bytes:
    """Training loss and nnU-Net's validation Dice of every arm over the epochs, as PNG."""
    curves = {"train_losses": "segmentation loss, training", "mean_fg_dice": "validation Dice (nnU-Net's estimate)"}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.8), layout="constrained")
        FigureCanvasAgg(figure)
        for number, (key, title) in enumerate(curves.items(), 1):
            axis = figure.add_subplot(1, len(curves), number)
            for (arm, folder), style in zip(folders.items(), ("-", "--"), strict=True):
                log = open_foreign(folder / "checkpoint_final.pth")["logging"]
                axis.plot(range(1, len(log[key]) + 1), log[key], style, marker=".", label=arm)
            axis.set_title(title, loc="left", fontsize=10)
            axis.set_xlabel("epoch")
            axis.grid(alpha=0.25)
        figure.axes[0].legend(loc="upper right")
    return png(figure)


def _best_slice(segmentation: np.ndarray) -> int:
    """The slice with most of the last class."""
    return int((segmentation == max(LABELS.values())).sum(axis=(1, 2)).argmax())


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
