"""Errors of this package at the end of a stock command: the message and the remedy, without a traceback."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from nnunet_invariance.errors import OptionError
from nnunet_invariance.trainers.error_display import show_message_only

ROOT = Path(__file__).parents[2]


def test_other_errors_keep_their_traceback(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *arguments: seen.append(arguments))
    show_message_only()
    show_message_only()
    sys.excepthook(OptionError, OptionError("Option 'seed' is -1. Correct it."), None)
    assert capsys.readouterr().err == "\nOptionError: Option 'seed' is -1. Correct it.\n"
    assert seen == []
    error = ValueError("other")
    sys.excepthook(ValueError, error, None)
    assert seen == [(ValueError, error, None)]


@pytest.mark.commands
def test_a_stock_command_ends_with_our_message(tiny, results):
    script = shutil.which("nnUNetv2_train", path=sysconfig.get_path("scripts"))
    assert script, f"nnUNetv2_train is not installed beside {sys.executable}"
    result = subprocess.run(
        [script, "777", "2d", "0", "-tr", "AliceTrainer_scratch_1epoch", "-device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=results.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("UnsupportedConfigurationError: AliceTrainer_scratch_1epoch supports 3d configurations")
    assert last.endswith("or train this one with BaselineTrainer.")
