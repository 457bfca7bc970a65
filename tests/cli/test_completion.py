"""The scripts for the shells: bash completes with the printed script."""

import shutil
import subprocess
import sys

import pytest

from nnunet_invariance.cli.main import COMMANDS, main

COMPLETE = """
source "$1"; shift
name=$(complete -p nnunet-invariance | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); "$name"; printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_methods_flags_and_folders(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scan.txt").touch()

    def complete(*words):
        command = ["bash", "-c", COMPLETE, "bash", str(script), "nnunet-invariance", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()

    assert set(COMMANDS) <= set(complete(""))
    assert complete("pretrain", "al") == ["alice"]
    assert complete("pretrain", "alice", "--alignment", "s") == ["sam", "same-volume"]
    assert complete("translate", "train", "--it") == ["--iterations"]
    assert complete("pretrain", "alice", "--images", "sc") == ["scans"]


def test_zsh_gets_a_script_with_every_command(capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef nnunet-invariance")
    assert all(command in script for command in COMMANDS)


def test_a_missing_package_is_named_with_its_command(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "needs shtab, which is not installed. Run `pip install" in capsys.readouterr().err
