"""How a comparison was made: cost, transferred weights, versions, cases and commands."""

import html
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_invariance.common.html import TRANSFER_FORM, bullets, folded, notice, table, transfer_table
from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.common.json_forms import Maybe, Objects
from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import DamagedFileError
from nnunet_invariance.evaluation.protocols.arms import STOCK_ITERATIONS
from nnunet_invariance.evaluation.protocols.pretrainings import OWN
from nnunet_invariance.evaluation.runner.jobs import Job
from nnunet_invariance.evaluation.runner.record import read_commands
from nnunet_invariance.plans.options import BLOCK


def cost_section(jobs: Sequence[Job], record: Mapping[str, Any]) -> str:
    """The time of trainings and pre-trainings."""
    described, rows = record["comparison"], []
    for arm, group in itertools.groupby(sorted(jobs, key=lambda job: job.arm.name), key=lambda job: job.arm):
        entries = [record["jobs"].get(job.name, {}) for job in group if job.finished]
        times = [_minutes([e[step]["seconds"] for e in entries if step in e]) for step in ("train", "predict")]
        start = described["starts_from"].get(arm.name)
        cost = described["pretrainings"].get(start, {})
        before = "-" if cost.get("seconds") is None else f"{cost['seconds'] / 60:.1f} min, {cost['steps']} steps"
        rows.append((arm.name, start or "random weights", before, str(arm.epochs), str(len(entries)), *times))
    head = ("arm", "starts from", "pre-training", "epochs", "trainings", "train (mean)", "predict (mean)")
    machines = (", ".join(f"{key}: {value}" for key, value in m.items() if value) for m in _distinct(record, "machine"))
    return "<h2>Cost</h2>" + "".join(f"<p>{html.escape(m)}</p>" for m in machines) + table(head, rows, 5)


def _distinct(record: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """The different machines, or versions, of all commands; those of the record if no command names any."""
    first = {what: record[what]}
    steps = [step for job in record["jobs"].values() for step in job.values()]
    found = [place[what] for step in steps for place in step.get("places", [first])] or [first[what]]
    return [place for number, place in enumerate(found) if place not in found[:number]]


def _minutes(seconds: Sequence[float]) -> str:
    return f"{np.mean(seconds) / 60:.1f} min" if seconds else "-"


def transfer_section(jobs: Sequence[Job]) -> str:
    """The transfer report of every arm that has one."""
    parts = []
    for arm in dict.fromkeys(job.arm.name for job in jobs):
        files = [job.model / "transfer_report.json" for job in jobs if job.arm.name == arm]
        if table_or_error := next(filter(None, map(_transfer_of, files)), ""):
            parts.append(f"<h3>{html.escape(arm)}</h3>{table_or_error}")
    return "<h2>Weights taken from the pre-trainings</h2>" + "\n".join(parts) if parts else ""


def _transfer_of(file: Path) -> str:
    """A transfer report as HTML; "" without one, or for a network that started from random weights."""
    remedy = "The page does not need it; training the cell again writes it."
    try:
        if "coverage" not in read_json(file, default={}, remedy=remedy):
            return ""
        return transfer_table(read_json(file, remedy=remedy, form=TRANSFER_FORM))
    except DamagedFileError as error:
        return notice(str(error))


def warning_section(described: Mapping[str, Any]) -> str:
    """The warnings that the pre-trainings logged in their last epoch, in red."""
    return "\n".join(
        notice(f"Pre-training {name}: {warning}")
        for name, entry in described["pretrainings"].items()
        for warning in entry.get("warnings", ())
    )


def _plans_block(out: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the comparison's own copy of the plans."""
    file = out / "nnUNet_preprocessed" / described["dataset"] / f"{described['plans']}.json"
    form = {"configurations": Maybe(Objects({BLOCK: Maybe(dict)}))}
    plans = read_json(file, default={}, form=form)
    return plans.get("configurations", {}).get(described["configuration"], {}).get(BLOCK, {})


def making_section(record: Mapping[str, Any], out: Path) -> str:
    """Versions, seeds, cases and commands."""
    described = record["comparison"]
    subsets = "\n".join(
        f"{s['name']}: train {' '.join(s['train'])}; val {' '.join(s['val'])}" for s in described["subsets"]
    )
    tests = "\n".join(f"test {t['name']}: {' '.join(t['cases'])}" for t in described["tests"])
    jobs = [*map(read_commands, sorted((out / OWN).glob("*.json"))), *record["jobs"].values()]
    stock = (command for job in jobs for step in job.values() for command in step["commands"])
    commands = "\n".join([*record.get("commands", ()), *stock])
    parts = [bullets(_facts(record, out)), folded("Cases", f"{subsets}\n{tests}"), folded("Commands", commands)]
    return "<h2>How it was made</h2>" + "\n".join(parts)


def _facts(record: Mapping[str, Any], out: Path) -> list[str]:
    """Seeds, lengths, versions and checksums."""
    described = record["comparison"]
    block = _plans_block(out, described)
    iterations = block.get("iterations_per_epoch") or STOCK_ITERATIONS["iterations_per_epoch"]
    facts = [
        f"seed of draws and intervals: {described['seed']}; training seed in the plans: {block.get('seed', 'none')}",
        f"{iterations} iterations per epoch",
        f"mirroring at prediction: {'yes' if described['mirroring'] else 'no'}",
    ]
    facts += [f"tolerance of NSD: {described['tolerance']} mm"] if described.get("tolerance") is not None else []
    several = _distinct(record, "versions")
    for package in dict.fromkeys(package for versions in several for package in versions):
        found = dict.fromkeys(versions[package] for versions in several if versions.get(package))
        facts += [f"{package} {' and '.join(found)}"] if found else []
    for arm, used in described.get("unlabelled", {}).items():
        rest = " outside of each training" if used["rest"] else ""
        cases, scans = counted(len(used["cases"]), "case"), counted(len(used["scans"]), "scan")
        facts += [f"{arm} learns without labels from {cases}{rest} and {scans}"]
    return facts + [f"{name}: sha256 {entry['sha256']}" for name, entry in described["pretrainings"].items()]
