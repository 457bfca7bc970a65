"""The comparison runner: what is scored, a tree of its own, its jobs, and that a stopped run goes on."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_invariance.common.csv_files import write_csv
from nnunet_invariance.common.lock import lock_folder
from nnunet_invariance.errors import ComparisonError, FolderLockedError, OutputError
from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.protocols.cases import LabelledCase, labelled_cases
from nnunet_invariance.evaluation.protocols.few_shot import run_few_shot
from nnunet_invariance.evaluation.protocols.protocol import ProtocolOptions
from nnunet_invariance.evaluation.protocols.splits import Subset
from nnunet_invariance.evaluation.runner.jobs import Arm, CaseSet, Job, Setting, epochs_done, run_job
from nnunet_invariance.evaluation.runner.progress import steps_done
from nnunet_invariance.evaluation.runner.stock_commands import command_path, run_command
from nnunet_invariance.evaluation.runner.tree import build_preprocessed, build_tests, link
from nnunet_invariance.evaluation.scoring.scores import (
    Score,
    read_scores,
    score_case,
)
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from tests.helpers.tiny_dataset import cut_down

POOL = [f"case_{i:03d}" for i in range(20)]
ARMS = [Arm("AliceTrainer_scratch_1epoch", "AliceTrainer_scratch_1epoch"), Arm("plain", "BaselineTrainer_1epoch")]


# --- what is scored


def slow_dice(reference: np.ndarray, prediction: np.ndarray, labels: set[int]) -> tuple[float, int, int]:
    both = n_ref = n_pred = 0
    for r, p in zip(reference.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        n_ref += r in labels
        n_pred += p in labels
        both += r in labels and p in labels
    return (2 * both / (n_ref + n_pred) if n_ref + n_pred else math.nan), n_ref, n_pred


def write_labels(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.uint8)), str(path))
    return path


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "two": 2, "one": 1},  # not in the order of their values
        {"background": 0, "whole": [1, 2], "two": 2},
    ],
)
def test_dice_is_that_of_a_loop_over_the_voxels(tiny, tmp_path, labels):
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 3, (2, 6, 7, 8))
    files = [write_labels(tmp_path / f"{i}.nii.gz", a) for i, a in enumerate(arrays)]
    dataset = {"labels": labels, "regions_class_order": [1, 2], "file_ending": ".nii.gz"}
    found = score_case(*files, tiny.preprocessed / tiny.name / "nnUNetPlans.json", dataset)
    wanted = {name: slow_dice(*arrays, {v} if isinstance(v, int) else set(v)) for name, v in labels.items() if v}
    assert found.keys() == wanted.keys()
    for name, row in wanted.items():
        assert [found[name][i] for i in (0, 3, 4)] == pytest.approx(row)


def test_an_absent_class_is_nan_in_both_and_zero_in_one(tiny, tmp_path):
    reference, prediction = np.zeros((4, 4, 4)), np.zeros((4, 4, 4))
    reference[0] = 1
    files = [write_labels(tmp_path / f"{n}.nii.gz", a) for n, a in (("r", reference), ("p", prediction))]
    dataset = {"labels": {"background": 0, "one": 1, "two": 2}, "file_ending": ".nii.gz"}
    found = score_case(*files, tiny.preprocessed / tiny.name / "nnUNetPlans.json", dataset)
    assert (found["one"][0], *found["one"][3:]) == (0, 16, 0)
    assert math.isnan(found["two"][0])
    assert found["two"][3:] == (0, 0)


def test_a_prediction_that_is_missing_or_of_another_shape(tiny, tmp_path):
    reference = write_labels(tmp_path / "r.nii.gz", np.ones((4, 4, 4)))
    other = write_labels(tmp_path / "p.nii.gz", np.ones((4, 4, 5)))
    dataset = {"labels": {"background": 0, "one": 1}, "file_ending": ".nii.gz"}
    plans = tiny.preprocessed / tiny.name / "nnUNetPlans.json"
    with pytest.raises(ComparisonError, match=r"p\.nii\.gz cannot be compared with .*r\.nii\.gz"):
        score_case(reference, other, plans, dataset)
    with pytest.raises(ComparisonError, match=r"gone\.nii\.gz does not exist"):
        score_case(reference, tmp_path / "gone.nii.gz", plans, dataset)


def random_scores() -> list[Score]:
    rng = np.random.default_rng(1)
    rows = [
        Score(f"{k} shots", draw, arm, f"case{c}", label, float(rng.random()), math.nan, 1.0, 5, 6)
        for k in (1, 5)
        for draw in (0, 1)
        for arm in ("a", "b")
        for c in range(4)
        for label in ("x", "y")
    ]
    rows[0] = replace(rows[0], dice=math.nan)  # arm a, so this pair has no difference
    rng.shuffle(rows)
    return rows


def test_scores_survive_their_file(tmp_path):
    rows = random_scores()
    write_csv(tmp_path / "scores.csv", rows, Score)
    head = (tmp_path / "scores.csv").read_text().splitlines()[0]
    assert head == "condition,draw,arm,case,label,dice,nsd,hd95,n_ref,n_pred"
    assert list(map(repr, read_scores(tmp_path / "scores.csv"))) == list(map(repr, rows))


# --- the tree of its own


@pytest.fixture
def plans_name(tiny) -> str:
    plans = cut_down(tiny.plans, "ComparisonPlans", iterations_per_epoch=1, val_iterations_per_epoch=1, seed=0)
    (tiny.preprocessed / tiny.name / "ComparisonPlans.json").write_text(json.dumps(plans))
    return "ComparisonPlans"


def test_the_tree_holds_the_drawn_cases_and_no_other(tiny, plans_name, tmp_path):
    planned = open_planned_dataset(tiny.name, tiny.configuration, plans_name)
    before = {p: p.stat().st_mtime_ns for p in planned.base.rglob("*")}
    subsets = [Subset(1, 0, ("case_003",), ("case_001",)), Subset(2, 0, ("case_003", "case_004"), ("case_001",))]
    build_preprocessed(tmp_path, planned, subsets)
    base = tmp_path / "nnUNet_preprocessed" / tiny.name
    drawn = {"case_001", "case_003", "case_004"}
    assert {p.name.split(".")[0].removesuffix("_seg") for p in (base / planned.folder.name).iterdir()} == drawn
    assert {p.name for p in (base / "gt_segmentations").iterdir()} == {f"{case}.nii.gz" for case in drawn}
    splits = json.loads((base / "splits_final.json").read_text())
    assert splits == [{"train": list(s.train), "val": list(s.val)} for s in subsets]
    assert json.loads((base / f"{plans_name}.json").read_text()) == planned.plans.plans | {"plans_name": plans_name}
    assert {p: p.stat().st_mtime_ns for p in planned.base.rglob("*")} == before

    cases = labelled_cases(tiny.raw / tiny.name, planned.dataset_json)
    sets = [CaseSet("", [cases["case_000"]]), CaseSet("dark", [cases["case_001"]], values={0: 0, 1: 2, 2: 0})]
    build_tests(tmp_path, sets, ".nii.gz", SimpleITKIO())
    labels = (cases["case_001"].label, tmp_path / "test_labels/dark/case_001.nii.gz")
    before, after = (sitk.GetArrayFromImage(sitk.ReadImage(path)) for path in labels)
    assert np.array_equal(after, 2 * (before == 1))
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("test_*/**/*.gz"))
    assert found == [
        "test_images/case_000_0000.nii.gz",
        "test_images/dark/case_001_0000.nii.gz",
        "test_labels/case_000.nii.gz",
        "test_labels/dark/case_001.nii.gz",
    ]


def test_images_of_any_name_are_linked_as_those_of_their_case(tiny, tmp_path):
    label = tiny.raw / tiny.name / "labelsTr" / "case_000.nii.gz"
    cases = []
    for name in ("a", "b"):  # named as a "dataset" block in dataset.json may name them
        (tmp_path / name).mkdir()
        images = tuple(tmp_path / name / f"{kind}.nii.gz" for kind in ("t1", "t2"))
        for image in images:
            image.write_text(f"{name} {image.name}")
        cases.append(LabelledCase(name, images, label))
    build_tests(tmp_path / "out", [CaseSet("", cases)], ".nii.gz", SimpleITKIO())
    found = {p.name: p.read_text() for p in (tmp_path / "out" / "test_images").iterdir()}
    assert found == {f"{n}_000{i}.nii.gz": f"{n} t{i + 1}.nii.gz" for n in "ab" for i in (0, 1)}


def test_a_file_system_without_hard_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no hard links here")

    (tmp_path / "a").write_text("content")
    monkeypatch.setattr(os, "link", refuse)
    link(tmp_path / "a", tmp_path / "sub" / "b")
    assert (tmp_path / "sub" / "b").read_text() == "content"
    with pytest.raises(OutputError, match=r"a/c could not be written"):
        link(tmp_path / "a", tmp_path / "a" / "c")


def test_a_link_to_a_symlink_is_one_to_the_file(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a").write_text("content")
    (tmp_path / "b").symlink_to("store/a")
    target = tmp_path / "other" / "tree" / "b"
    target.parent.mkdir(parents=True)
    target.symlink_to("store/a")  # what an earlier version left; it leads nowhere from here
    link(tmp_path / "b", target)
    assert target.read_text() == "content"
    link(tmp_path / "b", target.with_name("c"))
    assert not target.with_name("c").is_symlink()
    assert target.with_name("c").read_text() == "content"


def test_labelled_cases_are_those_with_a_label_file(tiny, tmp_path):
    planned = open_planned_dataset(tiny.name, tiny.configuration)
    assert sorted(labelled_cases(tiny.raw / tiny.name, planned.dataset_json)) == [f"case_{i:03d}" for i in range(6)]
    raw = tmp_path / "raw"
    for name in ("imagesTr", "imagesTs", "labelsTr", "labelsTs"):
        (raw / name).mkdir(parents=True)
    for file in ("imagesTs/t1_0000.nii.gz", "imagesTs/t2_0000.nii.gz", "labelsTs/t1.nii.gz"):
        (raw / file).touch()
    (case,) = labelled_cases(raw, planned.dataset_json).values()
    assert (case.name, [p.name for p in case.images]) == ("t1", ["t1_0000.nii.gz"])
    two = planned.dataset_json | {"channel_names": {"0": "T1", "1": "T2"}}
    for channel in range(2):
        (raw / f"imagesTs/t1_{channel:04d}.nii.gz").touch()
    assert list(labelled_cases(raw, two)) == ["t1"]  # t2 lacks a channel, and has no label
    (raw / "imagesTs/t1_0001.nii.gz").unlink()
    with pytest.raises(ComparisonError, match=r"Case t1 .* has 1 image file, expected 2"):
        labelled_cases(raw, two)
    for file in (raw / "imagesTs").iterdir():
        file.unlink()
    assert labelled_cases(raw, two) == {}  # a folder without images is as none


# --- one job


@pytest.fixture
def job(tiny, plans_name, tmp_path) -> Job:
    """A job on one test case, in a tree of its own, with nothing done."""
    planned = open_planned_dataset(tiny.name, tiny.configuration, plans_name)
    subset = Subset(1, 0, ("case_003",), ("case_001",))
    out = tmp_path / "comparison"
    build_preprocessed(out, planned, [subset])
    raw = tiny.raw / tiny.name
    case = LabelledCase("case_000", (raw / "imagesTr/case_000_0000.nii.gz",), raw / "labelsTr/case_000.nii.gz")
    tests = [CaseSet("", [case])]
    build_tests(out, tests, ".nii.gz", SimpleITKIO())
    setting = Setting(out, tiny.name, planned.dataset_json, plans_name, tiny.configuration, "cpu", False, tests, 1.0)
    return Job(ARMS[1], subset, 0, setting)


def pretend_trained(job: Job) -> None:
    job.model.mkdir(parents=True)
    (job.model / "checkpoint_final.pth").touch()


def test_a_job_with_its_predictions_is_only_scored(job):
    pretend_trained(job)
    link(job.setting.tests[0].cases[0].label, (job.folder / "predictions" / "case_000.nii.gz"))
    run_job(job)
    rows = read_scores(job.scores)
    assert [(r.condition, r.draw, r.arm, r.case, r.label, r.dice, r.nsd, r.hd95) for r in rows] == [
        ("1 shot", 0, "plain", "case_000", "body", 1.0, 1.0, 0.0),
        ("1 shot", 0, "plain", "case_000", "core", 1.0, 1.0, 0.0),
    ]
    assert not job.record.exists()  # no command was left to run
    written = job.scores.stat().st_mtime_ns
    run_job(job)
    assert job.scores.stat().st_mtime_ns == written


def test_a_prediction_that_is_gone_is_made_again(job, monkeypatch):
    pretend_trained(job)
    predictions = job.folder / "predictions"
    link(job.setting.tests[0].cases[0].label, predictions / "another_case.nii.gz")

    def run_command(name, command, *_):
        target = job.setting.out / command[command.index("-o") + 1]
        link(job.setting.tests[0].cases[0].label, target / "case_000.nii.gz")
        return 1.0

    monkeypatch.setattr("nnunet_invariance.evaluation.runner.jobs.run_command", run_command)
    run_job(job)
    assert [p.name for p in predictions.iterdir()] == ["case_000.nii.gz"]
    assert len(read_scores(job.scores)) == 2


def test_a_command_that_fails_is_recorded_with_its_time(job, monkeypatch):
    def run_command(*_):
        time.sleep(0.06)
        raise ComparisonError("it broke")

    monkeypatch.setattr("nnunet_invariance.evaluation.runner.jobs.run_command", run_command)
    for _ in range(2):
        with pytest.raises(ComparisonError, match="it broke"):
            run_job(job)
    train = json.loads(job.record.read_text())["train"]
    assert train["commands"] == [" ".join(job.train_command())] * 2
    assert train["seconds"] >= 0.2  # each rounded to tenths


def test_a_half_finished_training_is_continued(job):
    assert job.train_command()[-1] != "--c"
    job.model.mkdir(parents=True)
    (job.model / "checkpoint_latest.pth").touch()
    words = "nnUNetv2_train Dataset777_Tiny 3d_fullres 0 -tr BaselineTrainer_1epoch -p ComparisonPlans -device cpu --c"
    assert job.train_command() == words.split()


def test_a_failed_command_names_the_job_its_log_and_its_last_words(job, tmp_path, monkeypatch):
    command = tmp_path / "bin" / "nnUNetv2_predict"  # a command that fails at once, beside the running Python
    command.parent.mkdir()
    command.write_text("#!/bin/sh\necho starts\necho the checkpoint is empty >&2\nexit 1\n")
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(command.with_name("python")))
    pretend_trained(job)
    link(job.setting.tests[0].cases[0].label, job.folder / "predictions.partial" / "case_000.nii.gz")
    with pytest.raises(ComparisonError) as error:
        run_job(job)
    message = str(error.value)
    assert message.startswith("plain/shots1_draw0, predict: `nnUNetv2_predict -i test_images ")
    assert str(job.folder / "predict.log") in message
    assert message.splitlines()[-1] == (job.folder / "predict.log").read_text().splitlines()[-1]
    assert message.splitlines()[-1] == "the checkpoint is empty"
    assert not (job.folder / "predictions").exists()
    assert not job.scores.exists()
    assert not (job.folder / "predictions" / "case_000.nii.gz").exists()


def test_epochs_are_counted_from_the_words_of_the_log(job):
    job = replace(job, arm=Arm("x", "BaselineTrainer_7epochs"))
    assert epochs_done(job) == 0
    job.folder.mkdir(parents=True)
    lines = [
        f"2026-01-01 00:00:0{i}.000000: Epoch {i} \n2026-01-01 00:00:0{i}.1: Epoch time: 9.2 s\n" for i in range(4)
    ]
    (job.folder / "train.log").write_text("x" * 30000 + "\n" + "".join(lines))
    assert epochs_done(job) == 3
    assert steps_done(job) == (3, "training")
    pretend_trained(job)
    assert epochs_done(job) == 7
    assert steps_done(job) == (7, "validation and prediction")
    for test in job.setting.tests:
        job.predictions(test).mkdir(parents=True)
    assert steps_done(job) == (8, "scoring")
    job.scores.touch()
    assert steps_done(job) == (9, "finished")
    assert Arm("x", "nnUNetTrainer").epochs == 1000


# --- commands as processes


def python(*code: str) -> list[str]:
    return [Path(sys.executable).name, "-c", "\n".join(code)]


def test_a_command_runs_in_its_folder_with_its_environment(tmp_path):
    command = python("import os", "print(os.getcwd(), os.environ['MARK'])")
    seconds = run_command("job", command, tmp_path / "logs" / "a.log", tmp_path, {"MARK": "here"})
    assert (tmp_path / "logs" / "a.log").read_text().splitlines()[-1] == f"{tmp_path} here"
    assert 0 < seconds < 60


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_caller_leaves_neither_command_nor_worker(tmp_path, number):
    # what a shell starts in the background ignores SIGINT
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def stop() -> None:
        if (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().endswith("\n"):
            os.kill(os.getpid(), number)

    command = python(
        "import os, subprocess, time",
        "worker = subprocess.Popen(['sleep', '60'])",
        "print(os.getpid(), worker.pid, file=open('pids', 'w'), flush=True)",
        "time.sleep(60)",
    )
    try:
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
            run_command("job", command, tmp_path / "log", tmp_path, {}, stop)
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(0.5)
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        status = Path(f"/proc/{pid}/stat")  # an orphan that nobody waits for stays as a zombie
        assert not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_an_unknown_command_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ComparisonError, match="nnUNetv2_nothing was not found beside"):
        command_path("nnUNetv2_nothing")


def test_a_folder_is_locked_as_long_as_a_command_of_it_lives(tmp_path):
    with lock_folder(tmp_path) as lock:
        orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    with pytest.raises(FolderLockedError, match="is in use"), lock_folder(tmp_path):
        pass
    orphan.communicate(b"\n")
    with lock_folder(tmp_path):
        pass


# --- the whole


def compare(tiny, plans_name: str, out: Path, **changes) -> Path:
    arguments = {"shots": [2], "n_val": 1, "device": "cpu", "mirroring": False}
    cases = {"test": ["case_000", "case_004"]} | {k: changes.pop(k) for k in ("test", "n_test") if k in changes}
    planned = open_planned_dataset(tiny.name, tiny.configuration, plans_name)
    settings = ProtocolOptions(**arguments | changes, out=out)
    return run_few_shot(planned, Selection(tuple(ARMS)), settings, **cases)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"test": ["case_000", "test_000", "nobody"]},
            r"2 test cases have no image with a label: nobody, test_000",
        ),
        ({"shots": [4]}, r"4 shots and 1 validation cases need 5 .*found 4"),
        ({"test": None, "n_test": 7}, r"7 test cases .* 6 of the 6 labelled"),
        ({"test": Path("nowhere")}, r"nowhere contains no test image: expected imagesTs/CASE_0000\.nii\.gz"),
        ({"pretraining": [], "slurm": {"timeout_min": 9}}, r"--pretrain runs here, not on Slurm"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_leaves_nothing(
    tiny, plans_name, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr("nnunet_invariance.evaluation.protocols.protocol.require_submitit", lambda: None)
    with pytest.raises(ComparisonError, match=message):
        compare(tiny, plans_name, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.commands
def test_two_trainers_end_to_end_then_resumed(tiny, plans_name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("nnUNet_npp", "0")
    monkeypatch.setenv("nnUNet_nps", "0")
    out = compare(tiny, plans_name, tmp_path / "out")
    scores = read_scores(out / "scores.csv")
    assert {(s.arm, s.case, s.label) for s in scores} == {
        (arm.name, case, label) for arm in ARMS for case in ("case_000", "case_004") for label in ("body", "core")
    }
    assert all(s.n_ref > 0 and 0 <= s.dice <= 1 for s in scores)
    assert (out / "summary.txt").read_text().splitlines()[1:3] == ["", "Mean Dice, 2 shots:"]
    record = json.loads((out / "comparison.json").read_text())
    assert record["comparison"]["subsets"][0]["train"]
    assert str(tmp_path) not in json.dumps(record)
    assert [len(job[step]["commands"]) for job in record["jobs"].values() for step in ("train", "predict")] == [1] * 4

    # A kill after the second arm's training: its predictions and scores are lost, half a prediction is left.
    lost = out / "arms" / "plain" / "shots2_draw0"
    (lost / "scores.csv").unlink()
    (lost / "predictions").rename(lost / "predictions.partial")
    (lost / "predictions.partial" / "case_000.nii.gz").write_bytes(b"half")
    before = (out / "scores.csv").read_text()
    compare(tiny, plans_name, out)
    assert (out / "scores.csv").read_text() == before
    jobs = json.loads((out / "comparison.json").read_text())["jobs"]
    assert len(jobs["plain/shots2_draw0"]["predict"]["commands"]) == 2
    assert [len(job["train"]["commands"]) for job in jobs.values()] == [1, 1]

    with pytest.raises(ComparisonError, match=r"comparison\.json belongs to another comparison: seed, subsets differ"):
        compare(tiny, plans_name, out, seed=1)
