"""Fuzz every reader of files with files that follow their formats but not the rules of these formats.

    python -m benchmarks.faults.fuzz --work DIR --minutes 60 --out benchmarks/results/faults/fuzz.json

Each target gets generated files in turn. An interrupted run continues: the examples of hypothesis, the findings and the
counts are kept in ``--work``. A crash of the process is a finding too, because a file is on disk before it is read.
"""

import argparse
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from benchmarks.common import environment, publish
from benchmarks.faults import readers, strategies, watch
from nnunet_invariance.common.json_files import read_json, write_json

#: Name, strategy of (suffix, bytes), and reader.
Target = tuple[str, st.SearchStrategy, Callable[[Path], Any]]


def targets(folder: Path) -> list[Target]:
    """Every kind of file and its readers."""
    texts = readers.Documents(folder / "documents")
    listed: list[Target] = [
        ("pickle programs", strategies.pickled_files(), readers.foreign),
        ("zip archives", strategies.changed_archives(), readers.foreign),
        ("safetensors headers", strategies.safetensors_files(), readers.foreign),
        ("safetensors headers, read as ours", strategies.safetensors_files(), readers.ours),
    ]
    for name, make in readers.foreign_contents().items():
        odd = (*strategies.ODD, *strategies.ODD_TENSORS)
        changed = strategies.changed_trees(make, odd).map(lambda tree: (".pth", strategies.saved(tree)))
        listed.append((f"values in a file of {name}", changed, readers.foreign))
    for method, content in readers.our_contents().items():
        whole = strategies.our_file(strategies.our_metadata(method), content, own_sum=True)
        listed.append((f"our metadata ({method})", strategies.our_files(method, content), readers.ours))
        listed.append((f"our bytes ({method})", strategies.flipped(".safetensors", whole), readers.ours))
    listed.append(("NIfTI headers", strategies.changed_images(readers.image_bytes()), readers.image))
    for name, whole in texts.files.items():
        changed = strategies.changed_texts(whole, name.endswith(".json")).map(lambda data: ("", data))
        listed.append((f"document {name}", changed, lambda path, name=name: texts.read(name, path)))
    return listed


class Record:
    """Counts, findings and the file that is being read, in a folder."""

    def __init__(self, work: Path) -> None:
        self.file, self.current, self.kept = work / "fuzz.json", work / "current", work / "findings"
        self.kept.mkdir(parents=True, exist_ok=True)
        self.content = read_json(self.file, default={"seconds": 0.0, "cpu_seconds": 0.0, "targets": {}, "findings": {}})

    def add(self, target: str, counts: Counter, seconds: float, cpu_seconds: float) -> None:
        """Add the outcomes of one round."""
        of_target = Counter(self.content["targets"].get(target, {}))
        self.content["targets"][target] = dict(of_target + counts)
        self.content["seconds"] = round(self.content["seconds"] + seconds, 1)
        self.content["cpu_seconds"] = round(self.content["cpu_seconds"] + cpu_seconds, 1)
        write_json(self.file, self.content)

    def find(self, target: str, suffix: str, data: bytes, problem: str) -> bool:
        """Keep the file of a new finding; returns whether it is new."""
        what = problem.rsplit(" at ", 1)
        place = f" at {what[1]}" if len(what) > 1 else ""
        signature = f"{target.split(' (')[0]}: {problem.split(':')[0]}{place}"[:160]
        known = self.content["findings"].get(signature)
        if known is None or len(data) < known["bytes"]:
            number = list(self.content["findings"]).index(signature) if known else len(self.content["findings"])
            (self.kept / f"{number:03d}{suffix}").write_bytes(data)
            entry = {"problem": problem, "bytes": len(data), "file": f"{number:03d}{suffix}", "target": target}
            self.content["findings"][signature] = entry
            write_json(self.file, self.content)
        return known is None


def one_round(target: Target, record: Record, examples: int, work: Path, database: Path) -> None:
    """Read ``examples`` generated files, and record how reading ended."""
    name, strategy, read = target
    counts: Counter[str] = Counter()
    folder = work / "files"
    start, cpu_start = time.monotonic(), time.process_time()

    @settings(
        max_examples=examples,
        deadline=None,
        database=DirectoryBasedExampleDatabase(database),
        suppress_health_check=list(HealthCheck),
        phases=(Phase.reuse, Phase.generate, Phase.target),
    )
    @given(strategy)
    def read_one(file: tuple[str, bytes]) -> None:
        suffix, data = file
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = folder / f"file{suffix}"
        path.write_bytes(data)
        record.current.write_text(json.dumps([name, str(path)]))
        outcome = watch.watch(read, path, work)
        counts[outcome.how] += 1
        if outcome.problem:
            counts["findings"] += 1
            record.find(name, suffix, data, outcome.problem)
        record.current.unlink()

    read_one()
    record.add(name, counts, time.monotonic() - start, time.process_time() - cpu_start)
    gc.collect()


def run_targets(work: Path, seconds: float, examples: int) -> None:
    """Rounds over all targets until the time is up."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    record = Record(work)
    listed = targets(work)
    readers.warm_up(work / "warm")
    watch.install()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for target in sorted(listed, key=lambda t: sum(record.content["targets"].get(t[0], {}).values())):
            one_round(target, record, examples, work, work / "examples")
            if time.monotonic() > end:
                return


def supervise(work: Path, minutes: float, examples: int) -> None:
    """Run the targets in child processes until the time is up; a child that dies leaves its file as a finding.

    The minutes are those of the processor: on a busy machine, the clock says little about how much was tried.
    """
    while (left := 60 * minutes - Record(work).content["cpu_seconds"]) > 0:
        command = [sys.executable, "-m", "benchmarks.faults.fuzz", "--work", str(work), "--examples", str(examples)]
        child = subprocess.run([*command, "--child", str(left)], check=False)
        record = Record(work)
        if child.returncode == 0:
            continue
        if not record.current.is_file():
            raise SystemExit(f"the child ended with {child.returncode} outside of a reader")
        name, file = json.loads(record.current.read_text())
        record.find(name, Path(file).suffix, Path(file).read_bytes(), f"the process ended with {child.returncode}")
        record.current.unlink()


def main() -> None:
    """Run, or run as the child of a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the examples and the findings")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the processor, in all runs together")
    parser.add_argument("--examples", type=int, default=200, help="files per target and round")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="JSON file of the counts and findings")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.child is not None:
        run_targets(arguments.work, arguments.child, arguments.examples)
        os._exit(0)  # no time for the modules of torch to unwind
    described = environment("cpu", 1)
    supervise(arguments.work, arguments.minutes, arguments.examples)
    publish("fuzz", described, Record(arguments.work).content, arguments.out)


if __name__ == "__main__":
    main()
