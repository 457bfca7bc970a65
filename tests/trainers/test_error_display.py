"""Errors of this package at the end of a stock command: the message and the remedy, without a traceback."""

import os
import subprocess
import sys

import pytest
import torch

from nnunet_invariance.errors import OptionError
from nnunet_invariance.trainers.error_display import show_message_only
from tests.helpers.commands import ROOT, command_line
from tests.helpers.tiny_trainers import make_trainer


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


def test_a_device_that_this_machine_lacks_is_named_with_the_remedy(tiny, results, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trainer = make_trainer(tiny, "BaselineTrainer_1epoch", device="cuda")
    with pytest.raises(OptionError, match=r"-device cuda: not available on this machine; .*Add -device cpu"):
        trainer.initialize()


@pytest.mark.commands
def test_a_stock_command_ends_with_our_message(tiny, results):
    result = subprocess.run(
        command_line("nnUNetv2_train", "777", "2d", "0", "-tr", "AliceTrainer_scratch_1epoch", "-device", "cpu"),
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
