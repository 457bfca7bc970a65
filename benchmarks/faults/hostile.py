"""Read hostile files of every kind, and record for each how reading it ended, what it ran and what memory it took.

    python -m benchmarks.faults.hostile --work DIR --seeds 3 --out benchmarks/results/faults/hostile.json

The files come from a generator with a seed (``tests/helpers/hostile_files.py``). All are read in one process whose
commands, connections and written files an audit hook sees (:mod:`benchmarks.faults.watch`).
"""

import argparse
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common import environment, publish
from benchmarks.faults import readers, watch
from tests.helpers.damaged_images import damaged_images
from tests.helpers.hostile_files import metadata_files, pickle_files, safetensors_files, seeded, zip_files

KINDS = {
    "pickle instructions": pickle_files,
    "zip archives": zip_files,
    "safetensors headers": safetensors_files,
    "metadata in our format": metadata_files,
}


def read_all(work: Path, seeds: range) -> dict[str, dict[str, Any]]:
    """The outcomes by kind of file."""
    found: dict[str, dict[str, Any]] = {}
    folder = work / "file"
    for kind, make in KINDS.items():
        outcomes = []
        for seed in seeds:
            for file in make(seeded(seed)):
                path = _empty(folder) / file.name
                path.write_bytes(file.data)
                for read in (readers.foreign, readers.ours) if path.suffix == ".safetensors" else (readers.foreign,):
                    outcomes.append(watch.watch(read, path, folder))
        found[kind] = summary(outcomes, sum(len(list(make(seeded(seed)))) for seed in seeds))
    found["images"] = _images(_empty(folder))
    return found


def _images(folder: Path) -> dict[str, Any]:
    path = folder / "scan.nii.gz"
    outcomes = [watch.watch(readers.image, path, folder) for _ in damaged_images(path)]
    return summary(outcomes, len(outcomes))


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def summary(outcomes: list[watch.Outcome], files: int) -> dict[str, Any]:
    """Counts of the outcomes, and every problem."""
    return {
        "files": files,
        "read": len(outcomes),
        "outcomes": dict(Counter(outcome.how for outcome in outcomes)),
        "ran code": sum(bool(outcome.events) for outcome in outcomes),
        "largest growth in MiB": max(outcome.mebibytes for outcome in outcomes),
        "problems": [outcome.problem for outcome in outcomes if outcome.problem],
    }


def main() -> None:
    """Read the files of all seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the files")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--out", type=Path, help="JSON file; printed only by default")
    arguments = parser.parse_args()
    described = environment("cpu", 1)
    readers.warm_up(arguments.work / "warm")
    watch.install()
    kinds = read_all(arguments.work, range(arguments.seeds))
    allowed = {"factor": watch.FACTOR, "rest_mebibytes": watch.REST / 2**20}
    publish("hostile", described, {"seeds": arguments.seeds, "allowed": allowed, "kinds": kinds}, arguments.out)


if __name__ == "__main__":
    main()
