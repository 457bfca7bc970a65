"""What every benchmark writes: its numbers beside the machine and the versions they were taken with."""

import json
import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def environment(device: str, threads: int) -> dict[str, Any]:
    """What the numbers depend on; to be read before the measuring, for the load of the machine."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_at_start": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nnunetv2": version("nnunetv2"),
    }


def publish(benchmark: str, described: dict[str, Any], result: dict[str, Any], out: Path | None) -> None:
    """Print a benchmark's result as JSON, and write it where ``out`` says so."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    text = json.dumps({"benchmark": benchmark, "created": created, "environment": described, **result}, indent=2)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
