"""Write the measured tables into docs/reliability.md, between their markers.

python -m benchmarks.faults.page --results benchmarks/results/faults
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tables import markdown
from nnunet_invariance.common.json_files import read_json, write_text

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs/reliability.md", ROOT / "benchmarks/results/faults"


def kills_table(result: dict[str, Any]) -> str:
    """A row per command: kills, and chains of kills whose end was bit-identical."""
    rows = []
    for name, found in result["subjects"].items():
        counts = found["counts"]
        identical = f"{counts['identical']} of {counts['chains']}"
        rows.append([f"`{name}`", str(counts["enumerated"]), str(counts["random"]), str(found["points"]), identical])
    head = ["command", "kills at a point of a save", "kills at a random time", "points of a run", "bit-identical ends"]
    return f"{markdown(head, rows)}\n\n{_made(result)}"


def matrix_table(result: dict[str, Any]) -> str:
    """A row per fault, with the message of the user."""
    rows = [[row["area"], row["fault"], row["ended"], _cell(row["message"])] for row in result["faults"]]
    wrong = sum(row["problem"] is not None for row in result["faults"])
    said = f"{len(rows)} faults, {wrong} without the expected message. {_made(result)}"
    return f"{markdown(['area', 'fault', 'ends with', 'message'], rows)}\n\n{said}"


def hostile_table(result: dict[str, Any]) -> str:
    """A row per kind of file: files, how reading them ended, code that ran, and memory."""
    rows = []
    for kind, found in result["kinds"].items():
        outcomes = ", ".join(f"{how} {number}" for how, number in sorted(found["outcomes"].items()))
        growth = f"{found['largest growth in MiB']:.0f} MiB"
        rows.append([kind, str(found["files"]), outcomes, str(found["ran code"]), growth, str(len(found["problems"]))])
    head = ["kind", "files", "outcomes", "ran code", "largest growth of memory", "problems"]
    return f"{markdown(head, rows)}\n\n{_made(result)}"


def fuzz_table(result: dict[str, Any]) -> str:
    """A row per kind of generated file."""
    rows: dict[str, Counter[str]] = {}
    for target, counts in result["targets"].items():
        kind = re.sub(r" of [\w-]+,.*| \(.*| .*\.(json|csv)", "", target)
        rows.setdefault(kind, Counter()).update(counts)
    lines = [
        [
            kind,
            str(sum(number for how, number in counts.items() if how != "findings")),
            str(counts["accepted"]),
            str(counts["findings"]),
        ]
        for kind, counts in rows.items()
    ]
    said = f"{result['seconds'] / 60:.0f} minutes, {result['cpu_seconds'] / 60:.1f} of them on a processor."
    return f"{markdown(['kind', 'files', 'accepted', 'findings'], lines)}\n\n{said} {_made(result)}"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "kills": kills_table,
    "matrix": matrix_table,
    "hostile": hostile_table,
    "fuzz": fuzz_table,
}


def with_tables(text: str, results: Path = RESULTS) -> str:
    """The page with the tables of all results that exist."""
    for name, table in TABLES.items():
        result = read_json(results / f"{name}.json", default={})
        content = table(result) if result else "Not measured yet."
        start, end = f"<!-- {name}: written by benchmarks.faults.page -->", f"<!-- end of {name} -->"
        pattern = f"{re.escape(start)}.*?{re.escape(end)}"
        text = re.sub(pattern, lambda _, block=f"{start}\n\n{content}\n\n{end}": block, text, flags=re.S)
    return text


def _made(result: dict[str, Any]) -> str:
    place = result["environment"]
    versions = f"Python {place['python']}, torch {place['torch']}, nnunetv2 {place['nnunetv2']}"
    return f"Measured on {result['created'][:10]}: {place['system']}, {versions}, {place['threads']} thread."


def _cell(text: str) -> str:
    short = " ".join(text.split())
    short = short if len(short) <= 300 else f"{short[:297]}..."
    return short.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    arguments = parser.parse_args()
    write_text(PAGE, with_tables(PAGE.read_text(encoding="utf-8"), arguments.results))


if __name__ == "__main__":
    main()
