"""Acceptance run on a GPU: every phase in a process of its own, all below 8 minutes, without network.

    python -m benchmarks.gpu.acceptance                                       all phases on CUDA; `make gpu`
    python -m benchmarks.gpu.acceptance --phases synthesis resume             some phases
    python -m benchmarks.gpu.acceptance -device cpu --size tiny --out FILE    a check of the phases themselves

Results are added to the JSON file after every phase; a phase that is measured again replaces its older result. A phase
that fails or exceeds its limit does not stop the run. ``benchmarks.gpu.report`` turns the file into pages.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import environment
from benchmarks.gpu.context import SIZES, Context
from benchmarks.gpu.phases import PHASES
from nnunet_invariance._discovery import autoload
from nnunet_invariance.common.json_files import read_json, write_json

RESULT = Path(__file__).parents[1] / "results" / "gpu.json"
ROOT = Path(__file__).parents[2]
LEAST_SECONDS = 15  # a phase is not started with less time left
ERROR_LINES = 15


def run_one(name: str, arguments: argparse.Namespace) -> None:
    """Run one phase in this process and write its numbers to ``--result``."""
    autoload()
    context = Context(torch.device(arguments.device), SIZES[arguments.size], arguments.work.resolve())
    write_json(arguments.result, PHASES[name].run(context))


def run_apart(name: str, seconds: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one phase in a new process, and return its status, seconds, and numbers or error."""
    result, log = (arguments.work / f"{name}.{ending}" for ending in ("json", "log"))
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.acceptance", "--one", name, "--result", str(result)]
    command += ["-device", arguments.device, "--size", arguments.size, "--work", str(arguments.work)]
    started = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(search_path())},
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        status = _wait(process, seconds)
    found = {"status": status, "seconds": round(time.monotonic() - started, 1), "limit": PHASES[name].seconds}
    if status == "passed":
        return {**found, "result": read_json(result)}
    return {**found, "error": "\n".join(log.read_text(errors="replace").splitlines()[-ERROR_LINES:])}


def _wait(process: subprocess.Popen, seconds: float) -> str:
    try:
        return "passed" if process.wait(seconds) == 0 else "failed"
    except subprocess.TimeoutExpired:
        return "exceeded its limit"
    finally:  # workers of data loaders outlive a process that is killed
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def search_path() -> list[str]:
    """The checkout, what is on the path already, and a stand-in for SimpleITK where that is not installed."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        import SimpleITK  # noqa: F401
    except ImportError:
        paths.append(str(Path(__file__).parent / "stand_ins"))
    return paths


def run_all(names: list[str], arguments: argparse.Namespace) -> bool:
    """Run phases one after another; returns whether all passed."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    described = environment(arguments.device, os.cpu_count() or 1)
    end = time.monotonic() + arguments.deadline
    content = read_json(arguments.out, default={"benchmark": "gpu", "phases": {}})
    passed = True
    for name in names:
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            found: dict[str, Any] = {"status": "not run: no time was left"}
        else:
            limit = PHASES[name].seconds if arguments.device == "cuda" else left
            found = run_apart(name, min(limit, left), arguments)
        found |= {"created": datetime.now(timezone.utc).isoformat(timespec="seconds"), "size": arguments.size}
        content["phases"][name] = {**found, "device_type": arguments.device, "environment": described}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, content, indent=2)
        passed = passed and found["status"] == "passed"
        print(f"{name}: {found['status']}, {found.get('seconds', 0)} s {json.dumps(found.get('result', {}))[:400]}")
    return passed


def main() -> int:
    """Run the phases; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phases", nargs="+", choices=list(PHASES), default=list(PHASES))
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--size", default="full", choices=list(SIZES))
    parser.add_argument("--deadline", type=float, default=470.0, help="seconds for all phases")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu", help="folder for data, trainings and logs")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--one", choices=list(PHASES), help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(arguments.one, arguments)
        return 0
    return 0 if run_all(arguments.phases, arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
