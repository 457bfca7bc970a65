"""The records of a comparison: cases, commands and times, versions and machine, without paths."""

import functools
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.errors import ComparisonError

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


def open_record(path: Path, described: dict[str, Any], device: str) -> dict[str, Any]:
    """Write the description of a comparison, or merge it into that of a comparison that continues; returns the result.

    Raises:
        ComparisonError: see ``merged``.
    """
    if path.is_file():
        content = {**read_json(path), "comparison": merged(path, described)}
    else:
        content = {"comparison": described, "versions": versions(), "machine": machine(device), "jobs": {}}
    write_json(path, content)
    return content["comparison"]


def merged(path: Path, described: dict[str, Any]) -> dict[str, Any]:
    """The description in a record merged with that of a call that continues the comparison; writes nothing.

    A call may add arms, subsets, pre-trainings or contrasts, or name fewer; earlier ones stay. Subsets keep their
    order, because nnU-Net's folds are numbered by it.

    Raises:
        ComparisonError: the record is that of a different comparison; names the entries that differ.
    """
    before = read_json(path)["comparison"]
    both = {key: _merge(before.get(key), value) for key, value in described.items()}
    if differing := [key for key, value in both.items() if value is None and described[key] is not None]:
        msg = f"{path} belongs to another comparison: {', '.join(differing)} differ(s). "
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


def add_command(path: Path, step: str, command: list[str], seconds: float, place: dict[str, Any] | None = None) -> None:
    """Add a command and the machine it ran on to a record; the seconds of a step are the sum over its commands."""
    content = read_json(path, default={})
    entry = content.setdefault(step, {"commands": [], "seconds": 0.0})
    entry["commands"].append(" ".join(command))
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
        content = read_json(path)
        content[step]["seconds"] = round(content[step]["seconds"] + time.monotonic() - start, 1)
        write_json(path, content)


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
