"""The contract tests on the device, without those that need a data set."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.context import Context

ROOT = Path(__file__).parents[3]


def run(context: Context) -> dict[str, Any]:
    """Numbers of passed and failed tests, and the names of those that failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", str(context.device)]
    ended = subprocess.run([*command, *context.size.tests], cwd=ROOT, capture_output=True, text=True, check=False)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", ended.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.M)
    if not counts:
        raise RuntimeError(f"pytest ran no test: {ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    broken = counts.get("failed", 0) + counts.get("error", 0)
    return {"passed": counts.get("passed", 0), "failed": broken, "failures": failed}
