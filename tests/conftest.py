"""Shared by all tests: one thread, the discovery hook, and small data sets that nnU-Net preprocessed."""

import os
from pathlib import Path

# nnunetv2 and matplotlib read these when they are imported, so they are set first.
os.environ.update(nnUNet_def_n_proc="1", nnUNet_n_proc_DA="0", OMP_NUM_THREADS="1", MPLBACKEND="agg")
os.environ.update(nnUNet_npp="0", nnUNet_nps="0")  # nnUNetv2_predict starts no further processes
os.environ["MATPLOTLIBRC"] = str(Path(__file__).parent / "helpers" / "matplotlibrc")
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # spinning threads make a loaded machine ten times slower

import fcntl
import gc
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities import utils as nnunet_utilities

from nnunet_invariance._discovery import autoload
from nnunet_invariance.weights.locate import ENVIRONMENT_VARIABLE
from tests.helpers import tiny_modalities
from tests.helpers.planning import plan_and_preprocess
from tests.helpers.tiny_dataset import NAME, write_raw_dataset

autoload()  # a checkout that is not installed has no entry point
torch.set_num_threads(1)
nnunet_utilities.Pool = ThreadPool  # nnU-Net forks twelve processes whenever it lists the files of a folder

#: Functions that start processes which import torch.
STARTERS = frozenset({"torchrun", "on_two_ranks", "run_python"})
TREES = ("raw", "preprocessed", "results")  # nnU-Net's three folders
#: Fixtures of the preprocessed data sets.
DATA_SETS = frozenset({"tiny", "modalities"})
#: Keyword, for ``-k``, of the tests that the device of ``--device`` runs without a data set.
USES_DEVICE = "uses_device"


@dataclass(frozen=True)
class TinyDataset:
    """Folders and names of a preprocessed data set; `plans` is the content of its plans file."""

    root: Path
    raw: Path
    preprocessed: Path
    results: Path
    name: str
    plans_name: str
    configuration: str
    plans: dict


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--device``, so that the same tests run on an accelerator."""
    parser.addoption("--device", default="cpu", help="device of the tests that use the fixture `device` (default: cpu)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a preprocessed data set or new processes; ``make test-fast`` leaves them out.

    Tests that use the fixture `device` and no data set get the keyword :data:`USES_DEVICE`, for a machine with a GPU
    and without the packages that write images. Files that run the stock commands come first, so that no long file is
    left when the other worker has finished.
    """
    for item in items:
        code = getattr(getattr(item, "function", None), "__code__", None)
        starts_processes = code is not None and not STARTERS.isdisjoint(code.co_names)
        fixtures = {*getattr(item, "fixturenames", ())}
        if starts_processes or DATA_SETS & fixtures:
            item.add_marker("integration")
        if "device" in fixtures and not DATA_SETS & fixtures:
            item.extra_keyword_matches.add(USES_DEVICE)
    with_commands = {item.path for item in items if item.get_closest_marker("commands")}
    items.sort(key=lambda item: item.path not in with_commands)


def pytest_collection_finish() -> None:
    """Leave what the imports have made, half a million objects, out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device that ``--device`` names; a test that uses this fixture runs on it, in full float32 precision."""
    torch.backends.cudnn.allow_tf32 = False  # a GPU would round to 11 bits; for matrix products it is off by default
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed the global generators, so that a test gets the same random numbers in every run."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyDataset]:
    """Dataset777_Tiny: six labelled cases and two test images, planned and preprocessed (3d_fullres) by nnU-Net.

    A test may add plans files with other names, but must not change the data, the plans or the three variables.
    """
    from tests.helpers.pictures import draw_no_curves

    root = tmp_path_factory.mktemp("nnunet")
    trees = {name: root / name for name in TREES}
    with pytest.MonkeyPatch.context() as patch:
        draw_no_curves(patch)
        for name, folder in trees.items():
            folder.mkdir()
            patch.setenv(f"nnUNet_{name}", str(folder))
        plans = planned_copy(tmp_path_factory, root, NAME, write_raw_dataset)
        yield TinyDataset(
            root, **trees, name=NAME, plans_name="nnUNetPlans", configuration="3d_fullres", plans=plans
        )  # fmt: skip


@pytest.fixture(scope="session")
def modalities(tiny: TinyDataset, tmp_path_factory: pytest.TempPathFactory) -> TinyDataset:
    """Dataset779_Modalities: two channels, one of them CT; some cases lack one of them."""
    plans = planned_copy(tmp_path_factory, tiny.root, tiny_modalities.NAME, tiny_modalities.write_raw_dataset)
    return replace(tiny, name=tiny_modalities.NAME, plans=plans)


@pytest.fixture
def results(tiny: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty results folder per test, and no weights in the environment variable."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    return tmp_path / tiny.name


def planned_copy(
    factory: pytest.TempPathFactory, root: Path, name: str, write_raw: Callable[[Path], None]
) -> dict[str, Any]:
    """Copy a planned data set into the trees of this process; the first process that needs it plans it for all."""
    several = "PYTEST_XDIST_WORKER" in os.environ
    shared = (factory.getbasetemp().parent if several else factory.mktemp("planned")) / f"planned_{name}"
    with open(f"{shared}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "finished").is_file():
            with pytest.MonkeyPatch.context() as patch:
                for tree in TREES:
                    (shared / tree).mkdir(parents=True)
                    patch.setenv(f"nnUNet_{tree}", str(shared / tree))
                write_raw(shared / "raw" / name)
                plan_and_preprocess(shared / "preprocessed" / name, int(name[7:10]))
            (shared / "finished").touch()
    for tree in ("raw", "preprocessed"):
        shutil.copytree(shared / tree / name, root / tree / name)
    return json.loads((root / "preprocessed" / name / "nnUNetPlans.json").read_text())
