"""The results of a probe as text, CSV, JSON, a picture and a page."""

import csv
import io
import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.pictures import STYLE, png
from nnunet_invariance.common.wording import counted
from nnunet_invariance.evaluation.statistics.intervals import crossed_interval
from nnunet_invariance.probing.page import make_page
from nnunet_invariance.probing.protocol import ALL_MAPS, ProbeResult, ProbeScores
from nnunet_invariance.probing.verdict import RANDOM, sentences


def mean_and_interval(dice: np.ndarray) -> tuple[float, float, float]:
    """Mean of a table (draws, cases), and its 95 % interval for other draws and cases, clipped to [0, 1]."""
    low, high = crossed_interval(dice)
    return float(np.nanmean(dice)), max(0.0, low), min(1.0, high)


def groups_of(result: ProbeResult) -> Iterator[tuple[str, list[ProbeScores]]]:
    """Groups of the report: one per checkpoint, and one of all random networks."""
    for scores in result.scores:
        if not scores.random:
            yield scores.name, [scores]
    if together := [scores for scores in result.scores if scores.random]:
        yield RANDOM, together


def summary(result: ProbeResult) -> dict[str, Any]:
    """All numbers of the report, in types that JSON supports."""
    networks = {}
    for name, members in groups_of(result):
        entry: dict[str, Any] = {"networks": len(members), "retrieval": float(np.mean([m.retrieval for m in members]))}
        for shots in result.options.shots:
            stacked = np.concatenate([m.dice[shots, ALL_MAPS] for m in members])
            mean, low, high = mean_and_interval(np.nanmean(stacked, axis=2))
            classes = {
                label: dict(zip(("mean", "low", "high"), mean_and_interval(stacked[:, :, i]), strict=True))
                for i, label in enumerate(result.classes)
                if np.isfinite(stacked[:, :, i]).any()  # no test case shows it, and no probe predicts it
            }
            maps = {m: float(np.mean([member.mean(shots, m) for member in members])) for m in result.maps}
            each = [member.mean(shots) for member in members]
            entry[f"{shots} shots"] = {
                "mean": mean, "low": low, "high": high, "classes": classes, "maps": maps, "best": max(each)
            }  # fmt: skip
        networks[name] = entry
    return {
        "networks": networks,
        "classes": list(result.classes),
        "retrieval_chance": result.chance,
        "test_cases": list(result.test),
        "labelled_cases": list(result.train),
        "patch_does_not_show_all_labels": list(result.incomplete),
        "options": result.options.to_dict(),
        "environment": {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()},
    }


def to_text(result: ProbeResult) -> str:
    """Text for the console: Dice of the whole hypercolumn by class, voxel retrieval, and Dice of each map alone."""
    data = summary(result)
    lines = ["\n".join(sentences(data)), ""]
    for shots in result.options.shots:
        lines.append(f"Dice of the linear probe, {counted(shots, 'labelled case')}:")
        for name, entry in data["networks"].items():
            row = entry[f"{shots} shots"]
            by_class = "  ".join(f"{label} {v['mean']:.3f}" for label, v in row["classes"].items())
            lines.append(f"  {name:<24} {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  {by_class}")
    lines += ["", f"Voxel retrieval across cases (chance {data['retrieval_chance']:.3f}):"]
    lines += [f"  {name:<24} {entry['retrieval']:.3f}" for name, entry in data["networks"].items()]
    shots = result.options.shots[-1]
    lines += ["", f"Dice of each stage alone, {counted(shots, 'labelled case')}:"]
    names = list(data["networks"])
    lines.append("  " + " " * 12 + "  ".join(f"{name[:14]:>14}" for name in names))
    for feature_map in result.maps:
        cells = (data["networks"][name][f"{shots} shots"]["maps"][feature_map] for name in names)
        lines.append(f"  {feature_map:<12}" + "  ".join(f"{cell:>14.3f}" for cell in cells))
    if result.incomplete:
        lines.append(f"The patch does not show all labelled voxels of {counted(len(result.incomplete), 'case')}.")
    return "\n".join(lines)


def rows(result: ProbeResult) -> Iterator[dict[str, Any]]:
    """One row per network, number of shots, map, draw, case and class."""
    for scores in result.scores:
        for (shots, feature_map), dice in scores.dice.items():
            for (draw, case, label), value in np.ndenumerate(dice):
                yield {
                    "network": scores.name, "shots": shots, "map": feature_map, "draw": draw,
                    "case": result.test[case], "class": result.classes[label], "dice": f"{value:.5f}",
                }  # fmt: skip


def draw(result: ProbeResult) -> Figure:
    """Draw Dice with intervals by number of labelled cases (left), and Dice of each map alone (right)."""
    data = summary(result)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
        shots = result.options.shots
        for number, (name, entry) in enumerate(data["networks"].items()):
            colour = "#999999" if name == RANDOM else f"C{number}"
            values = [entry[f"{k} shots"] for k in shots]
            mean, low, high = (np.array([v[key] for v in values]) for key in ("mean", "low", "high"))
            x = np.arange(len(shots)) + 0.06 * number
            left.errorbar(x, mean, (mean - low, high - mean), fmt="o-", color=colour, capsize=3, label=name)
            maps = [values[-1]["maps"][m] for m in result.maps]
            right.plot(range(len(maps)), maps, "o-", color=colour, label=name)
        left.set_xticks(range(len(shots)), [str(k) for k in shots])
        left.set(xlabel="labelled cases", ylabel="Dice of the linear probe", ylim=(0, 1), title="All stages together")
        left.set_xlim(-0.3, len(shots) - 0.7)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=4)
        right.set_xticks(range(len(result.maps)), [m.replace("_", "\n") for m in result.maps])
        right.set(
            ylabel="Dice", ylim=(0, 1), title=f"Each stage alone, {counted(shots[-1], 'labelled case')} (0: finest)"
        )
    return figure


def write_report(
    result: ProbeResult, folder: Path, title: str, features: bytes, warnings: Sequence[str] = (), command: str = ""
) -> Path:
    """Write ``probe.html``, ``probe.json``, ``scores.csv``, ``probe.png`` and ``features.png``; returns the page.

    Args:
        features: content of ``features.png``.
        warnings: what a reader of the page has to know before the numbers.
        command: the command line of the probe; "" if it was not started by one.

    Raises:
        OutputError: the folder is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["network", "shots", "map", "draw", "case", "class", "dice"])
    writer.writeheader()
    writer.writerows(rows(result))
    data, curves = {**summary(result), "command": command}, png(draw(result))
    contents = {
        "scores.csv": text.getvalue().encode(),
        "probe.png": curves,
        "features.png": features,
        "probe.json": json.dumps(data, indent=1).encode(),
        "probe.html": make_page(title, data, curves, features, warnings).encode(),
    }
    for name, content in contents.items():
        _write(folder / name, content)
    return folder / "probe.html"


def _write(path: Path, content: bytes) -> None:
    atomic_write(path, lambda file: file.write(content))
