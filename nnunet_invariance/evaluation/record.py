"""What a comparison writes down about itself: cases, commands and times, versions, machine; no paths."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.jobs import Job
from nnunet_invariance.weights.atomic import atomic_write

PACKAGES = ("nnunet_invariance", "nnunetv2", "torch", "dynamic_network_architectures", "batchgeneratorsv2", "numpy")


class Record:
    """The file ``comparison.json``; a continued comparison adds to the one that is there.

    Raises:
        ComparisonError: the file is of a comparison that is described otherwise; names what differs.
    """

    def __init__(self, path: Path, described: dict[str, Any], device: str) -> None:
        self.path = path
        if path.is_file():
            self.content = json.loads(path.read_text())
            self._require_same(described)
            return
        self.content = {"comparison": described, "versions": versions(), "machine": machine(device), "jobs": {}}
        self._write()

    def keep(self, job: Job, step: str, command: list[str], seconds: float) -> None:
        """Add a command that has ended; the seconds of a step are those of all its commands."""
        entry = self.content["jobs"].setdefault(job.name, {}).setdefault(step, {"commands": [], "seconds": 0.0})
        entry["commands"].append(" ".join(command))
        entry["seconds"] = round(entry["seconds"] + seconds, 1)
        self._write()

    def _write(self) -> None:
        atomic_write(self.path, lambda file: file.write(json.dumps(self.content, indent=1).encode()))

    def _require_same(self, described: dict[str, Any]) -> None:
        before = self.content["comparison"]
        if differing := [key for key, value in described.items() if before.get(key) != value]:
            msg = (
                f"{self.path} is of another comparison: {', '.join(differing)} differ(s). "
                "Give the same arguments to continue it, or another folder with --out."
            )
            raise ComparisonError(msg)


def versions() -> dict[str, str | None]:
    """Versions of the packages that decide a result; None for a checkout that is not installed."""
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(device: str) -> dict[str, Any]:
    """What the times were measured on: processor, cores, system, Python, and the GPU when one is used."""
    import torch

    gpu = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else None
    software = {"system": platform.system(), "python": platform.python_version()}
    return {"cpu": _processor(), "cores": os.cpu_count(), "gpu": gpu, **software}


def _processor() -> str:
    information = Path("/proc/cpuinfo")  # Linux; elsewhere platform knows
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
