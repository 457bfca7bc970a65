"""The command line: fast help, errors without a traceback, exit statuses."""

import argparse
import importlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_invariance import __version__
from nnunet_invariance.cli import main as cli
from nnunet_invariance.cli.closing import finish
from nnunet_invariance.errors import InvarianceError
from nnunet_invariance.pretraining.engine.options import LoopOptions
from nnunet_invariance.registry import get_method

ROOT = Path(__file__).parents[2]


def run_module(*words: str, **environment: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("rank", "lines"), [("0", "finished: OUT\nnext: COMMAND\n"), ("1", "")])
def test_the_first_process_of_torchrun_prints_the_last_lines(rank, lines, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    assert finish("OUT", "COMMAND") == 0
    assert capsys.readouterr().out == lines


@pytest.mark.parametrize(
    "words",
    [
        "predict MODEL -i IN -o OUT",
        "adapt MODEL -i IN -o OUT",
        "probe 777 3d_fullres --methods mae",
        "translate predict 777 3d_fullres -i IN -o OUT",
        "translate evaluate 777 3d_fullres -i IN -o OUT",
        "register FIXED MOVING OUT",
    ],
)
def test_a_device_that_this_machine_lacks_is_named_with_the_remedy(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main([*words.split(), "-device", "cuda"]) == 2
    error = capsys.readouterr().err
    assert "-device cuda: not available on this machine" in error
    assert error.endswith("Add -device cpu.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [(), ("--help",), *((command, "--help") for command in cli.COMMANDS)])
def test_help_answers_in_half_a_second(words):
    """Processor time, because wall time depends on the load of the machine."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = run_module("-m", "nnunet_invariance", *words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        assert result.stdout.startswith(f"usage: {' '.join(('nnunet-invariance', *words)).removesuffix(' --help')} ")
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 0.5


def test_help_lists_every_command_and_imports_no_torch():
    result = run_module(
        "-c",
        "import sys\nfrom nnunet_invariance.cli.main import main\nmain([])\n"
        "print('heavy:', sorted({'torch', 'numpy', 'nnunetv2', 'matplotlib', 'SimpleITK'} & set(sys.modules)))",
    )
    assert "heavy: []" in result.stdout, result.stderr
    for command in cli.COMMANDS:
        assert re.search(rf"\n    {command}\s", result.stdout)


def test_help_shows_existing_defaults_only(capsys):
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "of initialisation, data and augmentation (default: 0)" in said
    assert "plans identifier (default: nnUNetPlans)" in said
    assert not re.search(r"default: (None|\[\]|False)", said)


@pytest.mark.parametrize(
    ("words", "listed", "absent"),
    [
        (
            ["pretrain", "dense"],
            ("least_distance=4.0", "lr=0.001", "epochs=400"),
            ("--preview", "--network", "mask_mode"),
        ),
        (
            ["pretrain", "alice"],
            ("weight_inter=auto", "preset=NAME", "one of 'block3d', 'tube'"),
            ("--preview", "None"),
        ),
        (["translate", "train"], ("source_modalities=1", "epochs=200", "weight_decay=auto"), ("--preview", "None")),
    ],
)
def test_the_help_of_a_method_lists_its_settings(words, listed, absent, capsys):
    with pytest.raises(SystemExit):
        cli.main([*words, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(text in said for text in listed)
    assert not any(text in said for text in absent)
    entry = get_method(words[1]) if words[0] == "pretrain" else get_method("puir_translation")
    names = {item.name for kind in (LoopOptions, entry.load().options_class) for item in kind.describe()}
    assert set(re.findall(r"(?:^| )([a-z_]+)=", said)) == names | ({"preset"} if "preset=" in said else set())


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"nnunet-invariance {__version__}\n"


@pytest.mark.parametrize(
    ("words", "nearest", "another"),
    [
        (["pretrane"], "pretrain", "doctor"),
        (["weights", "imprt", "nnunet", "FILE"], "import", "inspect"),
        (["pretrain", "alcie", "1", "3d_fullres"], "alice", "mae"),
    ],
)
def test_an_unknown_name_is_shown_with_the_nearest_and_all_known_ones(words, nearest, another, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err.replace("\n", " ")
    assert f"invalid choice: '{next(word for word in words if word not in cli.COMMANDS)}'" in error
    assert f"Did you mean '{nearest}'?" in error
    assert another in error


def test_a_device_of_another_name_gets_no_suggestion(capsys):
    with pytest.raises(SystemExit):
        cli.main(["probe", "1", "3d_fullres", "-device", "gpu"])
    assert "Did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (InvarianceError("file.pth: truncated. Download it again."), 2, "file.pth: truncated. Download it again."),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_of_the_user_becomes_one_line_and_a_status(raised, status, message, monkeypatch, capsys):
    def run(args: argparse.Namespace) -> int:
        raise raised

    monkeypatch.setattr(importlib.import_module("nnunet_invariance.cli.doctor"), "run", run)
    assert cli.main(["doctor"]) == status
    printed = capsys.readouterr()
    assert printed.err == f"nnunet-invariance doctor: {message}\n"
    assert printed.out == ""


def test_a_bug_keeps_its_traceback(monkeypatch):
    def run(args: argparse.Namespace) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(importlib.import_module("nnunet_invariance.cli.doctor"), "run", run)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


@pytest.mark.integration
def test_a_user_error_from_a_shell_has_no_traceback(tmp_path):
    words = ["pretrain", "alice", "Dataset999_Nowhere", "3d_fullres", "-device", "cpu"]
    folders = {f"nnUNet_{name}": str(tmp_path) for name in ("raw", "preprocessed", "results")}
    result = run_module("-m", "nnunet_invariance", *words, **folders)
    assert result.returncode == 2
    assert "Dataset999_Nowhere" in result.stderr
    assert "Traceback" not in result.stderr
