"""The demo's page: one self-contained HTML file with pictures, curves, the transfer report, the table and commands."""

import base64
import html
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_invariance.demo.data import ENDING, LABELS
from nnunet_invariance.evaluation.scores import read_scores, summarize
from nnunet_invariance.weights.atomic import atomic_write
from nnunet_invariance.weights.foreign import open_foreign

if TYPE_CHECKING:
    from nnunet_invariance.demo.run import Step

COLOURS = {1: "#ffb000", 2: "#00c8ff"}  # told apart by every kind of colour vision
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "legend.frameon": False}

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>nnunet-invariance demo: {method}</title>
<style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222; }}
h1 {{ font-size: 1.6rem; margin-bottom: 0.3rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
.notice {{ border-left: 4px solid #b00020; background: #fdf1f2; padding: 0.6rem 1rem; }}
img {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: 0.25rem 0.8rem; border-bottom: 1px solid #ddd; text-align: left; }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
pre {{ background: #f5f5f5; padding: 0.7rem 1rem; white-space: pre-wrap; font-size: 0.8rem; line-height: 1.45; }}
</style>
</head>
<body>
<h1>{method}: from unlabelled images to a scored segmentation</h1>
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
</body>
</html>
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
    text = PAGE.format(
        method=html.escape(method),
        n_test=len(record["test"]),
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
    page = out / "index.html"
    atomic_write(page, lambda file: file.write(text.encode()))
    return page


def _fold_folder(comparison: Path, arm: str, record: dict[str, Any]) -> Path:
    results = comparison / "arms" / arm / "nnUNet_results" / record["dataset"]
    return results / f"{arm}__{record['plans']}__{record['configuration']}" / "fold_0"


def inline(png: bytes, alternative: str) -> str:
    """An image element that carries its PNG file."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{data}">'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int) -> str:
    """A table of escaped text; the last ``numbers`` columns are set to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [""] * (len(cells) - numbers) + [' class="number"'] * numbers
        content = (f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
        return f"<tr>{''.join(content)}</tr>"

    return "<table>\n" + "\n".join([line(head, "th"), *(line(row, "td") for row in rows)]) + "\n</table>"


def transfer_table(report: dict[str, Any]) -> str:
    """The transfer report: tensors and parameters that were matched, adapted, skipped and missing."""
    rows = []
    for kind in ("matched", "adapted", "skipped", "missing"):
        parameters = sum(entry["parameters"] for entry in report[kind])
        rows.append((kind, str(len(report[kind])), f"{parameters:,}"))
    facts = (
        f"{report['coverage']:.0%} of the encoder's parameters come from {Path(report['checkpoint']).name} "
        f"({report['source']}); decoder: {report['decoder']}."
    )
    return f"<p>{html.escape(facts)}</p>\n" + table(("", "tensors", "parameters"), rows, numbers=2)


def score_table(scores: Path, baseline: str) -> str:
    """Mean Dice of each trainer and class, with the paired difference to ``baseline``."""
    rows = []
    for s in summarize(read_scores(scores), baseline):
        difference = (
            "" if s.trainer == baseline else f"{s.difference_mean:+.3f} (sd {s.difference_sd:.3f}, n={s.pairs})"
        )
        rows.append((s.trainer, s.label, f"{s.dice_mean:.3f}", f"{s.dice_sd:.3f}", difference))
    return table(("trainer", "class", "mean", "sd", f"paired difference to {baseline}"), rows, numbers=3)


def _step(step: "Step") -> str:
    commands = f"<pre>{html.escape(chr(10).join(step.commands))}</pre>" if step.commands else ""
    return f"<p>{html.escape(step.name)}: {step.seconds:.0f} s</p>{commands}"


def _coloured(label: int) -> str:
    name = next(name for name, value in LABELS.items() if value == label)
    return f'<span style="border-bottom: 3px solid {COLOURS[label]}">{html.escape(name)}</span>'


def draw_cases(raw: Path) -> bytes:
    """Six training cases, each with its outlines, as PNG."""
    labels = sorted((raw / "labelsTr").glob(f"*{ENDING}"))[:6]
    figure, axes = _panels(1, len(labels))
    for axis, path in zip(axes[0], labels, strict=True):
        name = path.name[: -len(ENDING)]
        segmentation = _read(path)
        _show(axis, _read(raw / "imagesTr" / f"{name}_0000{ENDING}"), segmentation, _best_slice(segmentation), name)
    return _png(figure)


def draw_predictions(raw: Path, comparison: Path, record: dict[str, Any], arms: Sequence[str]) -> bytes:
    """A row a test case: image, reference outlines, and the outlines each arm predicted, as PNG."""
    cases = record["test"]
    figure, axes = _panels(len(cases), 2 + len(arms))
    for row, case in zip(axes, cases, strict=True):
        image, reference = _read(raw / "imagesTs" / f"{case}_0000{ENDING}"), _read(raw / "labelsTs" / f"{case}{ENDING}")
        index = _best_slice(reference)
        _show(row[0], image, np.zeros_like(reference), index, case)
        _show(row[1], image, reference, index, "reference")
        for axis, arm in zip(row[2:], arms, strict=True):
            prediction = comparison / "arms" / arm / record["subsets"][0]["name"] / "predictions" / f"{case}{ENDING}"
            _show(axis, image, _read(prediction), index, arm)
    return _png(figure)


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
    return _png(figure)


def _panels(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axis: Axes, image: np.ndarray, segmentation: np.ndarray, index: int, title: str) -> None:
    """One slice in grey with the outline of every class."""
    axis.imshow(image[index], cmap="gray", interpolation="nearest")
    for label, colour in COLOURS.items():
        mask = segmentation[index] == label
        if mask.any() and not mask.all():
            axis.contour(mask, levels=[0.5], colors=colour, linewidths=1.4)
    axis.set_title(title, fontsize=8)
    axis.set_axis_off()


def _best_slice(segmentation: np.ndarray) -> int:
    """The slice with most of the last class."""
    return int((segmentation == max(COLOURS)).sum(axis=(1, 2)).argmax())


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
