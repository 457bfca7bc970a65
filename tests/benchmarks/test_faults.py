"""A short form of the fault benchmarks: kills of a run, faults of every area, and the page with the results."""

import re
from pathlib import Path

import pytest

from benchmarks.faults import page
from benchmarks.faults.fault import FAULTS, ask
from benchmarks.faults.kills import measure
from benchmarks.faults.matrix import MODULES
from benchmarks.faults.subjects import subjects, write_plans

ROOT = Path(__file__).parents[2]
#: One or two faults of every area; the slow test has all.
SHORT = (
    "a damaged checkpoint has a previous version",
    "the plans lack the network",
    "an entry of comparison.json is of another type",
    "a raw training scan is damaged",
    "the quota is used up",
    "the file system has no hard links",
    "the system kills nnUNetv2_train",
    "a data worker is stopped",
    "two ranks are stopped",
    "SIGTERM",
    "the clock is set back to the time of an earlier run",
    "nnUNet_def_n_proc is no number",
    "an option of a trainer in the plans is misspelt (evaluate)",
    "a --pretrain option is misspelt",
)


@pytest.fixture
def plans(tiny, modalities, results):
    """The plans of small networks for both data sets."""
    for dataset in (tiny, modalities):
        write_plans(dataset.preprocessed / dataset.name, dataset.plans)


def problems_of(folder: Path, names: set[str]) -> dict[str, str]:
    chosen = [fault for fault in FAULTS if fault.name in names]
    assert {fault.name for fault in chosen} == names
    answers = {fault.name: ask(fault, folder / "fault").problem(fault.expected) for fault in chosen}
    return {name: problem for name, problem in answers.items() if problem}


def test_there_are_at_least_40_faults_of_every_area():
    assert MODULES
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40
    areas = ("file", "disk", "memory", "worker", "rank", "signal", "clock", "environment")
    assert {fault.area for fault in FAULTS} == set(areas)


@pytest.mark.usefixtures("plans")
def test_faults_are_answered_with_their_message(tmp_path):
    assert problems_of(tmp_path, set(SHORT)) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("plans")
def test_every_fault_is_answered_with_its_message(tmp_path):
    assert problems_of(tmp_path, {fault.name for fault in FAULTS}) == {}


@pytest.mark.parametrize(
    "name", ["pretrain mae", *(pytest.param(s.name, marks=pytest.mark.slow) for s in subjects()[2:])]
)
@pytest.mark.usefixtures("plans")
def test_killed_runs_end_bit_identical(tmp_path, name):
    subject = next(subject for subject in subjects() if subject.name == name)
    found = measure(subject, tmp_path / "kills", 4, {})
    assert found["counts"]["identical"] == found["counts"]["chains"] > 0
    assert found["counts"]["enumerated"] == found["counts"]["random"] == 2
    assert found["points"] > 20


def test_the_page_shows_the_results():
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    assert page.with_tables(text) == text, "run python -m benchmarks.faults.page"


def test_the_page_names_existing_tests():
    """Every point of the page has a test, by file and name."""
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) >= 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
