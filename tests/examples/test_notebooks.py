"""The notebooks run from the first cell to the last, in an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot
import pytest

from tests.helpers.commands import run_here
from tests.helpers.planning import plan_narrow_networks, sample_few_voxels

NOTEBOOKS = Path(__file__).parents[2] / "examples"


def execute(notebook: Path) -> dict[str, Any]:
    """Execute the code cells in one name space; a cell that fails is named by its number."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec"), names)
    return names


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for tree in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{tree}", "")  # restored after the test; the notebook sets it
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # nnU-Net's planner passes it to torch.set_num_threads
    matplotlib.use("Agg")
    yield tmp_path
    matplotlib.pyplot.close("all")


@pytest.mark.integration
def test_the_notebook_about_losses_lowers_its_loss(empty_folder):
    assert execute(NOTEBOOKS / "losses_and_synthesis.ipynb")["history"][-1] < 5


@pytest.mark.integration
def test_the_notebook_about_pretraining_ends_with_a_probe(empty_folder, monkeypatch):
    sample_few_voxels(monkeypatch)
    plan_narrow_networks(monkeypatch)
    ended = []  # the status of each command of the notebook
    monkeypatch.setattr(subprocess, "run", lambda words, check: ended.append(run_here(*words)))
    assert (execute(NOTEBOOKS / "pretrain_and_probe.ipynb")["folder"] / "probe.png").is_file()
    assert ended == [0, 0]


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") for cell in cells)
