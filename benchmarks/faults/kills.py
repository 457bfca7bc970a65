"""Kill runs at enumerated points inside their saves and at random times, continue them, and compare their ends.

    python -m benchmarks.faults.kills --work DIR --kills 50 --out benchmarks/results/faults/kills.json

A server imports everything once; each run is forked from it. Half of the kills are at points of the atomic writer
(:mod:`benchmarks.faults.crash_points`), spread evenly over the points of an undisturbed run, the others at random
times. A chain of up to ``CHAIN`` kills ends with a run that is not disturbed, whose end must be bit-identical to that
of a run that was never disturbed. The same command continues an interrupted measurement.
"""

import argparse
import random
import shutil
import signal
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.common import environment, publish
from benchmarks.faults import warm
from benchmarks.faults.crash_points import CrashPoints
from benchmarks.faults.subjects import Subject, make_data, subjects
from nnunet_invariance.common.json_files import read_json, write_json

CHAIN = 10
#: Seconds after which a run counts as a hang.
LONGEST = 1800.0


class Runner:
    """Runs a subject in child processes, in a folder of results of its own."""

    def __init__(self, subject: Subject, work: Path) -> None:
        self.subject, self.work = subject, work

    def start(self, results: Path, kill_at: int | None = None) -> BaseProcess:
        """Start or continue the subject, which dies at the point ``kill_at``."""
        environment = {**warm.trees(), "nnUNet_results": str(results)}
        results.mkdir(parents=True, exist_ok=True)
        end = self.work / "end.json"
        return warm.start(environment, results / "output.txt", _run, self.subject.name, kill_at, end)

    def finish(self, results: Path) -> dict[str, Any]:
        """Run without a disturbance; returns the content of the end and the names of the points."""
        (self.work / "end.json").unlink(missing_ok=True)
        status = warm.wait(self.start(results), LONGEST)
        if status != 0:
            tail = (results / "output.txt").read_text(errors="replace")[-2000:]
            ended = f"did not end in {LONGEST:.0f} seconds" if status is None else f"ended with {status}"
            raise RuntimeError(f"{self.subject.name} {ended}: {tail}")
        return read_json(self.work / "end.json")

    def kill(self, results: Path, kill_at: int | None, delay: float) -> bool:
        """Run until the point or the time; returns whether the run was killed before its end."""
        child = self.start(results, kill_at)
        if warm.wait(child, LONGEST if kill_at else delay) is None:
            child.kill()
            child.join()
        return child.exitcode == -signal.SIGKILL


def _run(name: str, kill_at: int | None, end: Path) -> None:
    subject = next(subject for subject in subjects() if subject.name == name)
    points = CrashPoints(kill_at)
    points.install()
    subject.run()
    names = list(points.names)
    write_json(end, {"content": subject.content(), "points": names})


def measure(subject: Subject, work: Path, kills: int, found: dict[str, Any]) -> dict[str, Any]:
    """Chains of kills until there are enough; ``found`` holds those of earlier calls."""
    runner = Runner(subject, work)
    shutil.rmtree(work / "reference", ignore_errors=True)
    started = time.monotonic()
    reference = runner.finish(work / "reference")
    seconds, points = time.monotonic() - started, reference["points"]
    total = Counter({"enumerated": 0, "random": 0, "chains": 0, "identical": 0} | found.get("counts", {}))
    places = Counter(found.get("places", {}))
    while total["enumerated"] + total["random"] < kills:
        shutil.rmtree(work / "disturbed", ignore_errors=True)
        for _ in range(CHAIN):
            number = total["enumerated"] + total["random"]
            rng = random.Random(f"{number} {total['not reached']}")
            enumerated = number % 2 == 0
            point = 1 + len(points) * (number // 2) * 2 // kills if enumerated else None
            if runner.kill(work / "disturbed", point, rng.uniform(0, seconds)):
                total["enumerated" if enumerated else "random"] += 1
                places[points[point - 1] if point else "at a random time"] += 1
            else:  # the rest of the run had no such point, or ended before the time
                total["not reached"] += 1
                break
            if total["enumerated"] + total["random"] >= kills:
                break
        end = runner.finish(work / "disturbed")
        total["chains"] += 1
        total["identical"] += end["content"] == reference["content"]
    return {"counts": dict(total), "places": dict(places), "points": len(points), "seconds": round(seconds, 2)}


def main() -> None:
    """Measure all subjects, or those that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the data and of the runs")
    parser.add_argument("--kills", type=int, default=50, help="kills of each subject")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="subjects; default: all")
    parser.add_argument("--out", type=Path, help="JSON file; printed only by default")
    arguments = parser.parse_args()
    described = environment("cpu", 1)
    work = arguments.work.absolute()
    make_data(work)
    file = work / "kills.json"
    found = read_json(file, default={})
    for subject in subjects():
        if arguments.only and subject.name not in arguments.only:
            continue
        folder = work / subject.name.replace(" ", "_")
        wall = time.monotonic()
        found[subject.name] = measure(subject, folder, arguments.kills, found.get(subject.name, {}))
        print(f"{subject.name}: {found[subject.name]} ({time.monotonic() - wall:.0f} s)", flush=True)
        write_json(file, found)
    publish("kills", described, {"kills": arguments.kills, "subjects": found}, arguments.out)


if __name__ == "__main__":
    main()
