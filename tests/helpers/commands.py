"""Runs nnU-Net's commands and this package's command in new processes, or in this one."""

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch

from tests.helpers.threads import threads_for_processes
from tests.helpers.tiny_dataset import TEST_SHAPES

ROOT = Path(__file__).parents[2]


def command_line(*words: str | Path) -> list[str]:
    """The command line of a console script of this environment."""
    script = shutil.which(words[0], path=sysconfig.get_path("scripts"))
    assert script, f"{words[0]} is not installed beside {sys.executable}"
    return [script, *map(str, words[1:])]


def stock(*words: str | Path, **environment: str) -> str:
    """Run a console script in a folder outside of the checkout; returns its output."""
    result = subprocess.run(
        command_line(*words),
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=os.environ["nnUNet_results"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{words}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def run_here(*words: str | Path) -> int:
    """The status of a console script that runs in this process, and its worker pools as threads.

    It saves the seconds in which a new process, and each of its workers, imports torch.
    """
    (script,) = entry_points(group="console_scripts", name=str(words[0]))
    with pytest.MonkeyPatch.context() as patch, threads_for_processes():
        patch.setattr(sys, "argv", [str(word) for word in words])
        patch.setattr(torch, "set_num_threads", lambda number: None)  # nnU-Net takes all cores
        try:
            return script.load()() or 0
        except SystemExit as end:
            return end.code or 0


def check_predictions(folder: Path) -> None:
    """Check the shapes and the label values of both predicted test images."""
    for index, shape in enumerate(TEST_SHAPES):
        labels = sitk.GetArrayFromImage(sitk.ReadImage(folder / f"test_{index:03d}.nii.gz"))
        assert labels.shape == shape
        assert labels.max() <= 2
