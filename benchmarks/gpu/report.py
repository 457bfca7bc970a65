"""Write docs/results/gpu.md and the entries of the README's table of devices from the JSON of the acceptance run.

    python -m benchmarks.gpu.report [--result benchmarks/results/gpu.json]

Only phases that ran on CUDA at full size count; everything else is "not run yet".
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.acceptance import RESULT, ROOT
from benchmarks.gpu.goals import GOALS, SPEED
from benchmarks.gpu.phases import PHASES
from benchmarks.tables import markdown
from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.json_files import read_json

PAGE, README = ROOT / "docs" / "results" / "gpu.md", ROOT / "README.md"
NOT_RUN = "not run yet"
#: Phases that show that an entry of the README's table works on CUDA.
ENTRIES = {
    "pretraining": ("pretraining_step", "precision", "evaluation"),
    "trainers": ("trainers", "training_step", "compiled_step", "resume"),
}
ENTRY = re.compile(r"<!-- gpu (\S+) -->.*?<!-- /gpu -->")
INTRODUCTION = """# Acceptance run on a GPU

`make gpu` measures what only a GPU can show, in less than eight minutes on one H100 with 16 cores and without network.
`python -m benchmarks.gpu.report` writes this page from `benchmarks/results/gpu.json`. Where it says "not run yet",
nothing was measured on CUDA.

`make gpu-wheels` downloads the Python packages for a machine without network into `wheels/`, and `make gpu` installs
them from there. Every phase is a process of its own with a time limit, and runs alone with
`python -m benchmarks.gpu.acceptance --phases NAME`.
"""


def measured(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The phases that ran on CUDA at full size, by name."""
    phases = content.get("phases", {})
    return {
        name: phase
        for name, phase in phases.items()
        if phase["device_type"] == "cuda" and phase["size"] == "full" and "seconds" in phase
    }


def page(content: Mapping[str, Any]) -> str:
    """The page for a content of the JSON file, which may be empty."""
    phases = measured(content)
    goals, rows = [], []
    for goal in GOALS:
        result = phases.get(goal.phase, {}).get("result")
        value = None if result is None else goal.value(result)
        outcome = NOT_RUN if value is None else "met" if goal.is_met(value) else "missed"
        goals.append([goal.text, goal.limit_text, NOT_RUN if value is None else goal.value_text(value), outcome])
    for name, phase in PHASES.items():
        found = phases.get(name)
        status = NOT_RUN if found is None else f"{found['status']}, {found['seconds']} s"
        rows.append([f"`{name}`", phase.shows, f"{phase.seconds} s", status])
    parts = [INTRODUCTION, "## Goals\n", markdown(["number", "goal", "measured", "outcome"], goals)]
    parts += ["\n## Phases\n", markdown(["phase", "what it shows", "limit", "last run"], rows)]
    parts += ["\n## Machine\n", _machines(phases)]
    return "\n".join(parts) + "\n"


def _machines(phases: Mapping[str, Any]) -> str:
    described = {
        f"{e['device']}, {e['cores']} cores, PyTorch {e['torch']}, nnU-Net {e['nnunetv2']}, Python {e['python']}"
        for e in (phase["environment"] for phase in phases.values())
    }
    return "\n".join(f"- {text}" for text in sorted(described)) or f"CUDA: {NOT_RUN}."


def with_entries(readme: str, content: Mapping[str, Any]) -> str:
    """The README with the state of every entry of its table of devices."""
    phases = measured(content)

    def entry(match: re.Match[str]) -> str:
        text = _state({name: phases.get(name) for name in ENTRIES[match[1]]})
        return f"<!-- gpu {match[1]} -->{text}<!-- /gpu -->"

    return ENTRY.sub(entry, readme)


def _state(phases: Mapping[str, dict[str, Any] | None]) -> str:
    ran = {name: phase for name, phase in phases.items() if phase is not None}
    if not ran or len(ran) < len(phases):
        return NOT_RUN
    if any(phase["status"] != "passed" or _is_wrong(name, phase["result"]) for name, phase in ran.items()):
        return "fails"
    return "tested on " + ", ".join(sorted({phase["environment"]["device"] for phase in ran.values()}))


def _is_wrong(name: str, result: Mapping[str, Any]) -> bool:
    """Whether a phase misses a goal that is not about speed."""
    goals = [goal for goal in GOALS if goal.phase == name and name not in SPEED]
    return any(not goal.is_met(value) for goal in goals if (value := goal.value(result)) is not None)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    content = read_json(arguments.result, default={})
    texts = {PAGE: page(content), README: with_entries(README.read_text(encoding="utf-8"), content)}
    for path, text in texts.items():
        atomic_write(path, lambda file, text=text: file.write(text.encode()))


if __name__ == "__main__":
    main()
