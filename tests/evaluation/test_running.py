"""Several cells at a time: here, on Slurm, and what a comparison's record takes."""

import json
import os
import shutil
import signal
import threading
import time

import pytest

from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.errors import ComparisonError, DamagedFileError, MissingPackageError
from nnunet_invariance.evaluation.protocols.splits import Subset
from nnunet_invariance.evaluation.report.page import write_report
from nnunet_invariance.evaluation.runner import running, stock_commands
from nnunet_invariance.evaluation.runner.record import add_command, open_record
from nnunet_invariance.evaluation.runner.running import run_jobs, submit_slurm
from nnunet_invariance.evaluation.runner.stock_commands import run_command
from nnunet_invariance.evaluation.runner.stored import RECORD, state, stored_jobs
from nnunet_invariance.evaluation.runner.tree import require_same_folds
from tests.helpers import stored_comparison
from tests.helpers.stored_comparison import write_comparison, write_scores_of


def test_a_comparison_grows_and_does_not_change(tmp_path):
    first = stored_comparison.described([""])
    path = tmp_path / "comparison.json"
    more = {**first, "arms": {"NewTrainer": {"trainer": "NewTrainer", "environment": []}}}
    more["subsets"] = [{**first["subsets"][0], "name": "shots5_draw0"}, *first["subsets"][:1]]
    open_record(path, first, "cpu", "evaluate A")
    merged = open_record(path, more, "cpu", "evaluate A B")
    assert read_json(path)["commands"] == ["evaluate A", "evaluate A B"]
    assert list(merged["arms"]) == [*first["arms"], "NewTrainer"]
    names = [s["name"] for s in merged["subsets"]]
    assert names == [*(s["name"] for s in first["subsets"]), "shots5_draw0"]  # folds keep their numbers
    before = path.read_text()
    changed = {**first, "seed": 1, "pretrainings": {"alice__P__3d_fullres": {"sha256": "other"}}}
    with pytest.raises(ComparisonError, match=r"belongs to another comparison: seed, pretrainings differ"):
        open_record(path, changed, "cpu")
    assert path.read_text() == before


# --- running


@pytest.fixture
def jobs(tmp_path):
    """Twelve cells of which none is done."""
    out = stored_comparison.write_comparison(tmp_path / "c")
    shutil.rmtree(out / "arms")
    return stored_jobs(out)


def test_a_record_without_a_tolerance_has_no_surface_scores(tmp_path):
    out = write_comparison(tmp_path / "comparison")
    record = read_json(out / RECORD)
    del record["comparison"]["tolerance"]
    write_json(out / RECORD, record)
    assert {job.setting.tolerance for job in stored_jobs(out)} == {None}


def test_jobs_run_in_parallel_each_on_its_device_and_a_failure_stops_no_other(jobs, monkeypatch):
    lock, at_once, most, seen = threading.Lock(), [0], [0], []

    def run_job(job, on_poll, keep_open, environment):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
            seen.append((job.name, environment["CUDA_VISIBLE_DEVICES"]))
        time.sleep(0.02)
        with lock:
            at_once[0] -= 1
        if job.name == jobs[1].name:
            raise ComparisonError("it broke")
        write_scores_of(job)

    monkeypatch.setattr(running, "run_job", run_job)
    with pytest.raises(ComparisonError, match=rf"1 of 12 trainings did not finish: {jobs[1].name}\. .*it broke"):
        run_jobs(jobs, parallel=2, devices=["3", "5"])
    assert sorted(name for name, _ in seen) == sorted(job.name for job in jobs)
    assert {device for _, device in seen} == {"3", "5"}
    assert most[0] == 2
    seen.clear()
    with pytest.raises(ComparisonError):
        run_jobs(jobs, parallel=2, devices=["3"])
    assert seen == [(jobs[1].name, "3")]  # what is finished is not run again


def test_an_error_that_nobody_foresaw_stops_no_other(jobs, monkeypatch, caplog):
    ran = []

    def run_job(job, *_):
        ran.append(job.name)
        if job.name == jobs[0].name:
            raise OSError("no space left")

    monkeypatch.setattr(running, "run_job", run_job)
    with pytest.raises(ComparisonError, match=rf"1 of 12 .*{jobs[0].name}\. .*OSError\('no space left'\)"):
        run_jobs(jobs)
    assert len(ran) == 12
    assert "Traceback" in caplog.text


def test_a_stopped_run_stops_every_job(jobs, monkeypatch):
    ended = []

    def run_job(job, on_poll, keep_open, environment):
        if job.name == jobs[0].name:
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            for _ in range(1000):
                on_poll()
                time.sleep(0.01)
        finally:
            ended.append(job.name)

    monkeypatch.setattr(running, "run_job", run_job)
    with pytest.raises(SystemExit):
        run_jobs(jobs, parallel=2)
    assert len(ended) <= 2


def test_slurm_without_submitit(jobs, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"needs submitit.*pip install .*submitit"):
        submit_slurm(jobs, tmp_path / "slurm", 2, {})


def test_slurm_gets_one_array(jobs, monkeypatch, tmp_path):
    pytest.importorskip("submitit", reason="submitit (extra slurm) is not installed")
    for name, said in (("sbatch", "Submitted batch job 77"), ("srun", "")):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\ncp \"$1\" {tmp_path}/script 2>/dev/null\necho '{said}'\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    write_scores_of(jobs[0])
    tasks = submit_slurm(jobs, tmp_path / "slurm", 3, {"timeout_min": 60, "slurm_partition": "short"})
    assert tasks == [f"77_{i}" for i in range(11)]
    with pytest.raises(ComparisonError, match=r"(?s)Slurm accepted no job .*colour.*Correct --slurm"):
        submit_slurm(jobs, tmp_path / "slurm", 3, {"colour": "blue"})
    script = (tmp_path / "script").read_text()
    assert "--array=0-10%3" in script
    assert "--partition=short" in script
    for job in jobs[1:]:
        write_scores_of(job)
    assert submit_slurm(jobs, tmp_path / "slurm", 3, {}) == []


@pytest.mark.integration
@pytest.mark.parametrize("content", ["", "condition,draw\n", "cut", "line", "garbage"])
def test_a_damaged_scores_file_is_not_a_finished_job(tmp_path, content):
    out = stored_comparison.write_comparison(tmp_path / "c")
    job = stored_jobs(out)[0]
    assert job.finished
    whole = job.scores.read_text()
    damaged = {"cut": whole[:-2], "line": "\n".join(whole.splitlines()[:-1]) + "\n", "garbage": "\0\1\n"}
    job.scores.write_text(damaged.get(content, content))
    assert not job.finished
    assert state(job).startswith("trained, scores.csv is damaged or incomplete")
    page = write_report(out).read_text()
    assert "Not finished: 2 of 12 cells" in page


def test_a_killed_command_names_its_job_and_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(stock_commands, "command_path", lambda name: f"/bin/{name}")
    with pytest.raises(ComparisonError, match=r"arm/shots1_draw0, train: .* was ended by SIGKILL.*memory.*--jobs"):
        run_command("arm/shots1_draw0, train", ["sh", "-c", "kill -9 $$"], tmp_path / "log", tmp_path, {})
    with pytest.raises(ComparisonError, match=r"job: .* was ended by SIGSEGV\. Correct"):
        run_command("job", ["sh", "-c", "kill -11 $$"], tmp_path / "log", tmp_path, {})
    words = "RuntimeError: One or more background workers are no longer alive. Exiting."
    with pytest.raises(ComparisonError, match=r"job: .*ended with status 1, because one of its worker processes died"):
        run_command("job", ["sh", "-c", f"echo '{words}'; exit 1"], tmp_path / "log", tmp_path, {})


@pytest.mark.parametrize("content", ["", '{"comparison": {"plans"', "[]", "{}", '{"comparison": 1}'])
def test_a_damaged_record_of_a_comparison_is_named_with_the_remedy(tmp_path, content):
    out = stored_comparison.write_comparison(tmp_path / "c")
    (out / "comparison.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"(?s)comparison\.json .*Move the file away and repeat the `evaluate`"):
        write_report(out)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"seed": -1}, r"comparison\.seed is -1, expected a whole number of at least 0"),
        ({"pretrainings": {"a": {"seconds": 1}}}, r"comparison\.pretrainings\.a\.sha256 is missing, expected a text"),
        ({"unlabelled": {"a": {}}}, r"comparison\.unlabelled\.a\.cases is missing, expected a list"),
    ],
)
def test_an_entry_of_a_record_that_no_comparison_writes_is_named(tmp_path, changes, found):
    out = stored_comparison.write_comparison(tmp_path / "c")
    record = read_json(out / RECORD)
    record["comparison"] |= changes
    write_json(out / RECORD, record)
    with pytest.raises(DamagedFileError, match=found):
        write_report(out)


@pytest.mark.integration
@pytest.mark.parametrize("content", ["", '{"train": {"commands"', "[]", '{"train": 1}', '{"train": {}}'])
def test_a_damaged_record_of_a_cell_costs_its_times_only(tmp_path, content, caplog):
    out = stored_comparison.write_comparison(tmp_path / "c")
    write_report(out)
    job, other = stored_jobs(out)[:2]
    job.record.write_text(content)
    page = write_report(out).read_text()
    assert f"nnUNetv2_train &lt;&amp;&gt; {job.name}" in page  # comparison.json has a copy
    assert "record.json.damaged; its commands and times are lost" in caplog.text
    add_command(job.record, "train", ["again"], 1.0)
    assert json.loads(job.record.read_text())["train"]["commands"] == ["again"]
    assert "commands" in json.loads(other.record.read_text())["train"]


@pytest.mark.integration
@pytest.mark.parametrize("content", ["", '{"coverage": 1.0, "matched"', '{"coverage": 1.0}', "[]"])
def test_a_damaged_transfer_report_does_not_stop_the_page(tmp_path, content):
    out = stored_comparison.write_comparison(tmp_path / "c")
    (stored_jobs(out)[0].model / "transfer_report.json").write_text(content)
    page = write_report(out).read_text()
    assert "AliceTrainer" in page
    assert content == "[]" or "transfer_report.json " in page


def test_a_lost_record_is_not_replaced_by_one_with_other_folds(tmp_path):
    subsets = [Subset(1, draw, ("a",), ("b",)) for draw in range(2)]
    file = tmp_path / "nnUNet_preprocessed" / "D" / "splits_final.json"
    require_same_folds(tmp_path, "D", subsets)
    write_json(file, [{"train": ["a"], "val": ["b"]}, {"train": ["a"], "val": ["b"]}])
    require_same_folds(tmp_path, "D", [*subsets, Subset(2, 0, ("a", "c"), ("b",))])
    for other in (subsets[:1], [Subset(1, 0, ("c",), ("b",)), *subsets]):
        with pytest.raises(ComparisonError, match=r"splits_final\.json has 2 folds that are not those of this call"):
            require_same_folds(tmp_path, "D", other)
