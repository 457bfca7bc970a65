"""The records of a comparison: cases, commands and times, versions and machine; only ``commands`` can hold paths."""

import functools
import importlib.metadata
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.common.json_forms import AtLeast, Maybe, Objects
from nnunet_invariance.errors import ComparisonError, DamagedFileError

logger = logging.getLogger(__name__)

#: Form of the record of a cell.
COMMANDS = Objects(
    {"commands": [str], "seconds": float, "places": Maybe([{"machine": dict, "versions": Objects(Maybe(str))}])}
)
_SUBSET = {
    "name": str,
    "shots": (int, str),
    "draw": AtLeast(0),
    "train": [str],
    "val": [str],
    "part": Maybe(int),
    "test": Maybe([str]),
}
#: Form of comparison.json.
RECORD_FORM = {
    "comparison": {
        "protocol": str,
        "dataset": str,
        "plans": str,
        "configuration": str,
        "seed": AtLeast(0),
        "mirroring": bool,
        "tolerance": Maybe(float),
        "arms": Objects({"trainer": str, "environment": [str], "plans": Maybe(str)}),
        "pretrainings": Objects({"sha256": str, "seconds": Maybe(float), "warnings": Maybe([str])}),
        "starts_from": Objects(str),
        "contrasts": [{"name": str, "arm": str, "reference": str, "family": str}],
        "left_out": Objects(str),
        "transductive": dict,
        "unlabelled": Maybe(Objects({"cases": [str], "rest": bool, "scans": [str]})),
        "subsets": [_SUBSET],
        "tests": [{"name": str, "cases": [str], "classes": Maybe([str]), "values": Maybe(dict)}],
    },
    "commands": Maybe([str]),
    "versions": Objects(Maybe(str)),
    "machine": dict,
    "jobs": Objects(COMMANDS),
}
PACKAGES = (
    "nnunet_invariance",
    "nnunetv2",
    "torch",
    "dynamic_network_architectures",
    "batchgeneratorsv2",
    "monai",
    "numpy",
    "scipy",
)


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a comparison.

    Raises:
        DamagedFileError: the file is missing, damaged or lacks an entry; says how to restore it.
    """
    remedy = (
        "Move the file away and repeat the `evaluate` command, with all numbers of shots and draws that it had: "
        "finished trainings, predictions and scores are kept."
    )
    return read_json(path, remedy=remedy, form=RECORD_FORM)


def read_commands(path: Path) -> dict[str, Any]:
    """Read the commands and times of a cell; a damaged file is renamed, and only its times are lost."""
    try:
        return read_json(path, default={}, remedy="", form=COMMANDS)
    except DamagedFileError as error:
        moved = path.with_name(f"{path.name}.damaged")
        path.replace(moved)
        lost = "its commands and times are lost, trainings and scores are not"
        logger.warning("%s It is now %s; %s.", str(error).strip(), moved.name, lost)
        return {}


def open_record(path: Path, described: dict[str, Any], device: str, command: str = "") -> dict[str, Any]:
    """Write the description of a comparison, or merge it into that of a comparison that continues; returns the result.

    Args:
        command: the command line that runs the comparison, which is added to those of earlier runs; empty in Python.

    Raises:
        ComparisonError: see ``merged``.
    """
    if path.is_file():
        content = {**read_record(path), "comparison": merged(path, described)}
    else:
        content = {"comparison": described, "versions": versions(), "machine": machine(device), "jobs": {}}
    content["commands"] = [line for line in (*content.get("commands", ()), command) if line]
    write_json(path, content)
    return content["comparison"]


def merged(path: Path, described: dict[str, Any]) -> dict[str, Any]:
    """The description in a record merged with that of a call that continues the comparison; writes nothing.

    A call may add arms, subsets, pre-trainings or contrasts, or name fewer; earlier ones stay. Subsets keep their
    order, because nnU-Net's folds are numbered by it.

    Raises:
        ComparisonError: the record is that of a different comparison; names the entries that differ.
    """
    before = read_record(path)["comparison"]
    both = {key: _merge(before.get(key), value) for key, value in described.items()}
    if differing := [key for key, value in both.items() if value is None and described[key] is not None]:
        verb = "differs" if len(differing) == 1 else "differ"
        msg = f"{path} belongs to another comparison: {', '.join(differing)} {verb}. "
        raise ComparisonError(f"{msg}Give the same arguments to continue it, or another folder with --out.")
    return both


def _merge(before: Any, now: Any) -> Any:
    """Both values merged, or None if they contradict each other."""
    if isinstance(now, list) and all(isinstance(item, dict) and "name" in item for item in now):
        merged = _merge({item["name"]: item for item in before or []}, {item["name"]: item for item in now})
        return None if merged is None else list(merged.values())
    if isinstance(now, dict) and isinstance(before, dict):
        if any(before[key] != now[key] for key in before.keys() & now.keys()):
            return None
        return before | now
    return now if json.loads(json.dumps(now)) == before else None


def add_command(
    path: Path, step: str, command: list[str] | None, seconds: float, place: dict[str, Any] | None = None
) -> None:
    """Add a command, its seconds and the machine it ran on to a record; without a command, only the seconds."""
    content = read_commands(path)
    entry = content.setdefault(step, {"commands": [], "seconds": 0.0})
    entry["commands"] += [] if command is None else [" ".join(command)]
    entry["seconds"] = round(entry["seconds"] + seconds, 1)
    if place is not None and place not in (places := entry.setdefault("places", [])):
        places.append(place)
    write_json(path, content)


@contextmanager
def recorded(path: Path, step: str, command: list[str], device: str) -> Iterator[None]:
    """Record the command that the block runs, the machine, and its seconds even if it fails."""
    add_command(path, step, command, 0.0, ran_on(device))  # before the block, because this process may be killed in it
    start = time.monotonic()
    try:
        yield
    finally:
        add_command(path, step, None, time.monotonic() - start)


@functools.cache
def ran_on(device: str) -> dict[str, Any]:
    """Machine and package versions of this process."""
    return {"machine": machine(device) | {"device": device}, "versions": versions()}


def versions() -> dict[str, str | None]:
    """Versions of the packages that affect a result; None for a checkout that is not installed."""
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(device: str) -> dict[str, Any]:
    """Processor, cores, system, Python version, and the GPU if one is used."""
    import torch

    gpu = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else None
    software = {"system": platform.system(), "python": platform.python_version()}
    return {"cpu": _processor(), "cores": os.cpu_count(), "gpu": gpu, **software}


def _processor() -> str:
    information = Path("/proc/cpuinfo")  # Linux; elsewhere platform knows
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
