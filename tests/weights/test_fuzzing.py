"""Hostile files from a seed: each is refused with a named error, runs no code and needs little memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.hostile_files import hostile_files, write_files

#: Reads every file in a process whose memory may grow by 400 MB, and prints what came of it.
READ_ALL = """
import json, os, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.weights import import_foreign, inspect
from nnunet_invariance.weights.importers.registry import IMPORTERS, get_importer
[get_importer(name) for name in IMPORTERS]
os.chdir(sys.argv[1])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20, used + 400 * 2**20))
for path in sorted(Path().iterdir()):
    for read in (inspect, import_foreign):
        try:
            read(path)
            outcome = "was accepted"
        except InvarianceError as error:
            outcome = f"{type(error).__name__}: {error}"
        except BaseException as error:
            outcome = f"raised {type(error).__name__}: {error}"
        print(json.dumps([path.name, read.__name__, outcome]), flush=True)
"""
REFUSALS = ("UnsafeCheckpointError", "CheckpointCorruptError", "WeightsIncompatibleError")


@pytest.mark.integration
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_every_hostile_file_is_refused_by_name_within_bounded_memory(tmp_path: Path, seed: int) -> None:
    paths = write_files(tmp_path, seed)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    command = [sys.executable, "-c", READ_ALL, str(tmp_path), str(Path(__file__).parents[2])]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    outcomes = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(outcomes) == 2 * len(paths), f"the process died after {outcomes[-1:]}: {run.stderr[-500:]}"
    bad = [outcome for outcome in outcomes if not outcome[2].startswith(REFUSALS)]
    bad += [outcome for outcome in outcomes if "MemoryError" in outcome[2] or "allocate memory" in outcome[2]]
    bad += [outcome for outcome in outcomes if "\x1b" in outcome[2] or outcome[0] not in outcome[2]]
    assert bad == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_there_are_at_least_100_files_and_a_seed_repeats_them() -> None:
    assert len(hostile_files(0)) >= 100
    assert hostile_files(3) == hostile_files(3)
    assert hostile_files(3) != hostile_files(4)
