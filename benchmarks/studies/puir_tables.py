"""Tables, numbers and pictures of the finished parts of puir_real.py, and the list of the others."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import write_file
from benchmarks.studies.puir_data import DRAWS, SETS
from benchmarks.tables import markdown
from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.evaluation.protocols.missing_modality import JOIN
from nnunet_invariance.evaluation.report.pictures import draw_heat_map
from nnunet_invariance.evaluation.runner.stored import state, stored_jobs
from nnunet_invariance.evaluation.scoring.scores import Score, read_scores
from nnunet_invariance.evaluation.statistics.effects import arm_means
from nnunet_invariance.evaluation.statistics.score_table import OVERALL
from nnunet_invariance.modality_translation.evaluate import EXAMPLES, METRICS, SCORES, read_pairs

#: Name in the records to option of ``pretrain puir``.
CONSTRAINTS = {
    "decom": "weight_decomposition",
    "inv": "weight_invariance",
    "equ": "weight_equivariance",
    "contr": "weight_contrast",
}
FULL = "all constraints"
FILLED = ", transferred"  # suffix of a test set whose missing modalities were synthesised
TRANSFERS = ("transferred", "copied", "blank")
SHOWN = ("pgbm",)  # brats2015 is not shown, because its licence is for non-commercial use


def publish(work: Path, out: Path) -> None:
    """Write all tables, numbers and pictures again."""
    text, numbers, missing = [], {}, []
    for draw in range(DRAWS):
        for name in SETS:
            folder = work / f"{name}{draw}"
            title = f"{name}, draw {draw}"
            numbers[title] = found = _numbers(folder)
            missing += [f"- {title}: {what}" for what in _missing(folder, found)]
            if any(found.values()):
                text += [f"## {title}", *_tables(folder, found)]
            if name in SHOWN:
                _pictures(folder, out, f"{name}{draw}")
    text += ["## Not run", "\n".join(missing) or "- nothing is missing"]
    write_file(out / "tables.md", ("\n\n".join(text) + "\n").encode())
    write_file(out / "results.json", (json.dumps(numbers, indent=1) + "\n").encode())


def _numbers(folder: Path) -> dict[str, object]:
    """The numbers of one draw: held-out quantities, scores of the translation, Dice, commands and their seconds."""
    pairs = {
        kind: {f"{p.source} -> {p.target}, {p.case}": {m: getattr(p, m) for m in METRICS} for p in read_pairs(path)}
        for kind in TRANSFERS
        if (path := folder / kind).joinpath(SCORES).is_file()
    }
    record = read_json(folder / "comparison" / "comparison.json", default={})
    return {
        "held_out": read_json(folder / "held_out.json", default={}),
        "transfer": pairs,
        "dice": {f"{s.arm}, {s.condition}, {s.case}": s.dice for s in _scores(folder)},
        "comparison": record.get("comparison", {}),
        "seconds": {
            **{name: step["seconds"] for name, step in read_json(folder / "steps.json", default={}).items()},
            **{f"{n}, {s}": step["seconds"] for n, job in record.get("jobs", {}).items() for s, step in job.items()},
        },
    }


def _scores(folder: Path) -> list[Score]:
    path = folder / "comparison" / "scores.csv"
    return read_scores(path) if path.is_file() else []


def _missing(folder: Path, found: dict) -> list[str]:
    """The parts that are not finished, as text."""
    if not found["seconds"]:
        return ["nothing is run"]
    names = [FULL, *(f"without {name}" for name in CONSTRAINTS)]
    missing = [f"pre-training, {name}" for name in names if name not in found["held_out"]]
    missing += [f"transfer, {kind}" for kind in TRANSFERS if kind not in found["transfer"]]
    described = found["comparison"]
    if not described:
        return [*missing, "segmentation"]
    missing += [f"{job.name}: {state(job)}" for job in stored_jobs(folder / "comparison") if not job.finished]
    missing += [
        f"Dice from the pre-training without {n}" for n in CONSTRAINTS if f"without_{n}" not in described["arms"]
    ]
    whole = max(described["test_names"], key=lambda name: name.count(JOIN))
    subsets = 2 ** (whole.count(JOIN) + 1) - 1
    tested = [name for name in described["test_names"] if not name.endswith(FILLED)]
    return missing if len(tested) == subsets else [*missing, f"{subsets - len(tested)} of {subsets} subsets"]


def _tables(folder: Path, found: dict) -> list[str]:
    """Up to three tables, for the numbers that exist."""
    parts = []
    if held_out := found["held_out"]:
        head = list(next(iter(held_out.values())))
        lines = [[name, *(f"{row[key]:.3f}" for key in head)] for name, row in held_out.items()]
        parts += ["### Pre-training, measured on the tested patient", markdown(["", *head], lines)]
    if found["transfer"]:
        parts += ["### Modality transfer, mean over the cases", _transfer_table(folder)]
    if scores := _scores(folder):
        parts += ["### Dice, mean (each case)", _dice_table(scores)]
    return parts


def _transfer_table(folder: Path) -> str:
    """One row per pair; a cell has the translation, the copy of the source and the blank image."""
    rows = {kind: read_pairs(folder / kind) for kind in TRANSFERS if (folder / kind / SCORES).is_file()}
    lines = []
    for source, target in dict.fromkeys((p.source, p.target) for pairs in rows.values() for p in pairs):
        line = [source, target]
        for metric in METRICS:
            digits = 1 if "psnr" in metric else 3
            values = [
                np.mean([getattr(p, metric) for p in pairs if (p.source, p.target) == (source, target)])
                for pairs in rows.values()
            ]
            line.append(" / ".join(f"{value:.{digits}f}" for value in values))
        lines.append(line)
    return f"Cells: {' / '.join(rows)}.\n\n" + markdown(["from", "to", *(m.replace("_", " ") for m in METRICS)], lines)


def _dice_table(scores: Sequence[Score]) -> str:
    """One row per condition, one column per arm."""
    conditions, arms = (list(dict.fromkeys(getattr(s, key) for s in scores)) for key in ("condition", "arm"))
    lines = []
    for condition in conditions:
        line = [condition]
        for arm in arms:
            values = [s.dice for s in scores if (s.condition, s.arm) == (condition, arm)]
            each = f" ({', '.join(f'{v:.2f}' for v in values)})" if len(values) > 1 else ""
            line.append(f"{np.mean(values):.3f}{each}" if values else "")
        lines.append(line)
    return markdown(["tested with", *arms], lines)


def _pictures(folder: Path, out: Path, name: str) -> None:
    """Draw the grid of translations, and the heat map of Dice."""
    if (folder / "transferred" / EXAMPLES).is_file():
        write_file(out / f"{name}_transfer.png", (folder / "transferred" / EXAMPLES).read_bytes())
    if scores := _scores(folder):
        means = [mean for mean in arm_means(scores) if mean.label != OVERALL]
        write_file(out / f"{name}_dice.png", draw_heat_map(means))
