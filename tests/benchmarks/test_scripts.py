"""Every benchmark starts, is listed in the README, and records the environment of its numbers."""

import argparse
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.common import environment, publish

ROOT = Path(__file__).parents[2]
#: Scripts by the name that `python -m` takes; a package has its command in ``__main__.py``.
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"): file
    for file in sorted(ROOT.glob("benchmarks/**/*.py"))
    if "if __name__" in file.read_text(encoding="utf-8")
}
SCRIPTS = sorted(FILES)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_starts_and_shows_its_arguments(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(script, run_name="__main__")
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out
    assert f"python -m {script} " in FILES[script].read_text(encoding="utf-8"), "the docstring states the command"


def test_the_readme_lists_every_benchmark_and_no_other():
    page = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `((?:faults|gpu|micro|shipped_weights|studies)[\w.]*)` ", page, re.M)
    assert [f"benchmarks.{name}" for name in listed] == SCRIPTS


def test_documented_benchmark_commands_exist():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
    named = {name for page in pages for name in re.findall(r"python -m (benchmarks\.[\w.]+)", page.read_text("utf-8"))}
    assert named
    assert named - {*SCRIPTS} == set()


def commands_of_the_pages() -> list[list[str]]:
    """The words of every benchmark command that a page shows with arguments, in a block or in the text."""
    found = []
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]):
        text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
        blocks = re.findall(r"^(?:    |\t)+python -m (benchmarks\..*)$", text, re.M)
        inline = [" ".join(words.split()) for words in re.findall(r"`python -m (benchmarks\.[^`]* [^`]*)`", text)]
        shown = [words.replace("--phases NAME", "--phases synthesis") for words in (*blocks, *inline)]
        found += [shlex.split(re.sub(r"\s{3,}.*|[\[\]]", "", words)) for words in shown]
    return found


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_commands_of_the_pages_are_accepted(monkeypatch, capsys):
    def parse(parser, arguments=None, namespace=None):
        parse_args(parser, arguments, namespace)
        raise SystemExit(0)  # before the benchmark runs

    parse_args = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    refused = {}
    commands = commands_of_the_pages()
    for script, *arguments in commands:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(script, run_name="__main__")
        if stop.value.code:
            refused[" ".join([script, *arguments])] = capsys.readouterr().err
    assert len(commands) > 20
    assert refused == {}


def test_a_result_holds_its_environment_and_time(tmp_path, capsys):
    out = tmp_path / "new" / "result.json"
    publish("example", environment("cpu", 1), {"seconds": [1.0, 2.0]}, out)
    content = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == content
    assert list(content)[:3] == ["benchmark", "created", "environment"]
    assert content["environment"]["torch"] == torch.__version__
    assert {"device", "cores", "threads", "load_at_start", "system", "python", "nnunetv2"} < set(content["environment"])
    assert content["seconds"] == [1.0, 2.0]
