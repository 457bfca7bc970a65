"""The acceptance run: every phase on a CPU at tiny size, the runner's limits, and the pages that it writes."""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import acceptance, report, weights
from benchmarks.gpu.context import FULL, TINY, Context
from benchmarks.gpu.goals import GOALS, SPEED
from benchmarks.gpu.phases import PHASES
from nnunet_invariance.cli.main import main as cli
from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.pretraining.engine.loop import Loop
from nnunet_invariance.weights.checkpoint import load_checkpoint, read_metadata
from nnunet_invariance.weights.locate import FINAL, LATEST

#: Phases whose goals a CPU meets at any size.
CERTAIN = {"trainers", "resume", "evaluation", "prediction", "recovery", "contracts"}
#: The phase that starts pytest takes a process of its own.
PARAMETERS = [pytest.param(name, marks=[pytest.mark.slow] if name == "contracts" else []) for name in PHASES]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """One folder for all phases."""
    return Context(torch.device("cpu"), TINY, tmp_path_factory.mktemp("gpu"))


@pytest.mark.integration
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_phase_runs_on_a_cpu_and_gives_the_numbers_of_its_goals(name, context, monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_n_proc_DA", "nnUNet_compile"):
        monkeypatch.setenv(variable, "")  # so that the values that the phase sets are undone
    result = json.loads(json.dumps(PHASES[name].run(context)))
    assert result
    for goal in GOALS:
        if goal.phase == name and (value := goal.value(result)) is not None and name in CERTAIN:
            assert goal.is_met(value), goal.text


def test_every_goal_belongs_to_a_phase_and_the_limits_fit_into_eight_minutes():
    assert {goal.phase for goal in GOALS} == set(PHASES) - {"data"}
    assert sum(phase.seconds for phase in PHASES.values()) < 11 * 60  # limits, not durations; the run has a deadline


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("12 passed, 3 deselected in 1.0s", {"passed": 12, "failed": 0, "failures": []}),
        (
            "FAILED tests/a.py::test_b[1] - assert\nERROR tests/c.py::test_d - x\n1 failed, 2 passed, 1 error in 3s",
            {"passed": 2, "failed": 2, "failures": ["tests/a.py::test_b[1]", "tests/c.py::test_d"]},
        ),
    ],
)
def test_the_contract_tests_are_counted(output, expected, context, monkeypatch):
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, output, "")

    monkeypatch.setattr(subprocess, "run", run)
    full = Context(context.device, FULL, context.work)
    assert PHASES["contracts"].run(full) == expected
    assert commands[0][-2:] == ["-k", "uses_device"]  # the tests that need no data set, see tests/conftest.py
    output = "no tests ran"
    with pytest.raises(RuntimeError, match="no test"):
        PHASES["contracts"].run(full)


# ---- the runner ------------------------------------------------------------------------------------------------------


@pytest.fixture
def arguments(tmp_path: Path) -> argparse.Namespace:
    """Arguments of a run on a CPU."""
    return argparse.Namespace(
        device="cpu", size="tiny", work=tmp_path / "work", out=tmp_path / "new" / "gpu.json", deadline=100.0
    )


def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Replace the Python of the phases by a shell script."""
    file = tmp_path / "python"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setattr(acceptance.sys, "executable", str(file))


@pytest.mark.parametrize(
    ("script", "seconds", "status", "key"),
    [
        ('echo \'{"all_passed": true}\' > "$6"', 60, "passed", "result"),
        ("echo broken; exit 3", 60, "failed", "error"),
        ("echo slow; exec sleep 60", 0.3, "exceeded its limit", "error"),
    ],
)
def test_a_phase_that_fails_or_takes_too_long_does_not_stop_the_run(
    script, seconds, status, key, arguments, tmp_path, monkeypatch
):
    arguments.work.mkdir()
    interpreter(tmp_path, monkeypatch, script)
    found = acceptance.run_apart("recovery", seconds, arguments)
    assert found["status"] == status
    assert found["seconds"] < 10
    assert found[key] == {"result": {"all_passed": True}, "error": script.split(";")[0].removeprefix("echo ")}[key]


def test_results_are_added_and_the_deadline_is_kept(arguments, monkeypatch, capsys):
    monkeypatch.setattr(acceptance, "run_apart", lambda name, seconds, _: {"status": "passed", "seconds": seconds})
    assert acceptance.run_all(["synthesis"], arguments)
    arguments.deadline = 1.0
    assert not acceptance.run_all(["recovery"], arguments)
    phases = read_json(arguments.out)["phases"]
    assert phases["synthesis"]["status"] == "passed"
    assert phases["recovery"]["status"] == "not run: no time was left"
    assert phases["synthesis"]["environment"]["torch"] == torch.__version__
    assert phases["synthesis"]["device_type"] == "cpu"
    assert "synthesis: passed" in capsys.readouterr().out


# ---- the weights -----------------------------------------------------------------------------------------------------


class PretrainingHere:
    """A process that pre-trains in this one; its time is over when ``stop_after`` steps are done."""

    stop_after: int | None = None

    def __init__(self, command: list[str]) -> None:
        assert command[:3] == [sys.executable, "-m", "nnunet_invariance"]
        self.words, self.signals = command[3:], []

    def wait(self, seconds: float | None = None) -> int:
        if seconds is None:
            assert self.signals == [signal.SIGTERM]
            return self.status
        self.status = cli(self.words)
        if self.stop_after is not None:
            raise subprocess.TimeoutExpired(self.words, seconds)
        return self.status

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


def weights_on_a_cpu(monkeypatch: pytest.MonkeyPatch, out: Path, stop_after: int | None) -> int:
    """One call of `make gpu-weights` at tiny size; its time ends after a step."""
    train_step = Loop._train_step

    def step(loop: Loop, *arguments: object) -> None:
        train_step(loop, *arguments)
        loop.stop_requested = loop.stop_requested or loop.step == stop_after

    tiny = ["epochs=2", "iterations=1", "workers=0", "patch=16", "volume=32", "held_out=0", "num_positions=8"]
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_train_step", step)
        patch.setattr(PretrainingHere, "stop_after", stop_after)
        patch.setattr(subprocess, "Popen", PretrainingHere)
        words = ["weights", "--out", str(out), "--network", "plain4", "-device", "cpu", "--set", *tiny]
        patch.setattr(sys, "argv", words)
        return weights.main()


@pytest.mark.integration
def test_the_weights_are_trained_on_at_the_next_call(tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert weights_on_a_cpu(monkeypatch, whole, None) == 0
    assert weights_on_a_cpu(monkeypatch, parts, 1) == 0
    assert read_metadata(parts / LATEST)["step"] == 1
    assert weights_on_a_cpu(monkeypatch, parts, None) == 0
    first, second = (load_checkpoint(folder / FINAL) for folder in (whole, parts))
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert second.metadata["options"]["patch"] == 16  # every setting is passed on
    assert second.metadata["options"]["num_positions"] == 8
    monkeypatch.setattr(sys, "argv", ["weights", "--out", str(parts)])
    assert weights.main() == 0
    assert "holds the finished weights" in capsys.readouterr().out


def test_a_pretraining_of_the_weights_that_fails_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["weights", "--out", str(tmp_path), "-device", "cpu", "--set", "patch=x"])
    monkeypatch.setattr(subprocess, "Popen", PretrainingHere)
    assert weights.main() == 2


# ---- the pages -------------------------------------------------------------------------------------------------------


def phase(result: dict | None = None, status: str = "passed", **changes) -> dict:
    """A phase in the JSON of a run on a GPU."""
    machine = {"device": "NVIDIA Test", "cores": 16, "torch": "2.0", "nnunetv2": "2.8", "python": "3.12"}
    measured = {"status": status, "seconds": 3.0, "size": "full", "device_type": "cuda", "environment": machine}
    return {**measured, **({} if result is None else {"result": result}), **changes}


def test_the_pages_of_the_repository_show_the_stored_run():
    content = read_json(acceptance.RESULT, default={})
    assert report.PAGE.read_text(encoding="utf-8") == report.page(content)
    readme = report.README.read_text(encoding="utf-8")
    assert readme == report.with_entries(readme, content)
    assert len(report.ENTRY.findall(readme)) == 3


def test_nothing_counts_that_did_not_run_on_a_gpu_at_full_size():
    good = {"pairs_per_second": {}, "best": 200.0}
    for other in ({"device_type": "cpu"}, {"size": "tiny"}):
        page = report.page({"phases": {"synthesis": phase(good, **other)}})
        assert page == report.page({})
        assert "CUDA: not run yet." in page
    assert "| synthetic pairs of 128^3 voxels per second | at least 100 | not run yet | not run yet |" in page


def test_numbers_are_compared_with_their_goals():
    content = {
        "phases": {
            "synthesis": phase({"best": 99.0}),
            "recovery": phase({"all_passed": True}),
            "evaluation": phase({"all_finite": False}),
            "contracts": phase(status="failed", error="..."),
        }
    }
    page = report.page(content)
    assert "| synthetic pairs of 128^3 voxels per second | at least 100 | 99 | missed |" in page
    assert "| broken steps and short memory are survived | yes | yes | met |" in page
    assert "| the held-out evaluation is finite in every precision | yes | no | missed |" in page
    assert "| contract tests that fail | at most 0 | not run yet | not run yet |" in page
    assert "failed, 3.0 s |" in page
    assert "- NVIDIA Test, 16 cores, PyTorch 2.0" in page


@pytest.mark.parametrize("name", report.ENTRIES)
def test_the_table_of_devices_needs_every_phase_of_an_entry(name):
    line = f"a <!-- gpu {name} -->not run yet<!-- /gpu --> b"
    slow_but_right: dict[str, dict] = {}
    for goal in GOALS:
        result = slow_but_right.setdefault(goal.phase, {})
        for key in goal.path[:-1]:
            result = result.setdefault(key, {})
        result[goal.path[-1]] = float(goal.limit) if goal.phase not in SPEED else 1e9 if goal.at_most else 0.0
    names = report.ENTRIES[name]
    phases = {phase_name: phase(slow_but_right[phase_name]) for phase_name in names}

    def text() -> str:
        return report.with_entries(line, {"phases": phases})

    assert text() == line.replace("not run yet", "tested on NVIDIA Test")
    for goal in GOALS:
        if goal.phase in {*names} - SPEED:
            wrong = json.loads(json.dumps(phases[goal.phase]))
            result = wrong["result"]
            for key in goal.path[:-1]:
                result = result[key]
            result[goal.path[-1]] = 0.0 if goal.limit is True else 1e9
            phases, right = {**phases, goal.phase: wrong}, phases
            assert text() == line.replace("not run yet", "fails"), goal.text
            phases = right
    whole, phases = phases, {**phases, names[0]: phase(status="failed")}
    assert text() == line.replace("not run yet", "fails")
    phases = dict(list(whole.items())[1:])
    assert text() == line
