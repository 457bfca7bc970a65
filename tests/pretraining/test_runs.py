"""The pre-training loop with Alice on the tiny data set: stopping, continuing, and errors."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from nnunet_invariance.common.lock import lock_folder
from nnunet_invariance.errors import (
    DatasetNotFoundError,
    EnvironmentNotSetError,
    FolderLockedError,
    ImagesFolderError,
    InvarianceError,
    NonFiniteLossError,
    NotPreprocessedError,
    OptionError,
    OutputError,
    TooFewVolumesError,
    UnknownConfigurationError,
    UnsupportedConfigurationError,
    WeightsIncompatibleError,
    WeightsNotFoundError,
)
from nnunet_invariance.pretraining.engine.loop import PretrainingStopped
from nnunet_invariance.pretraining.engine.settings import Settings, parse_settings
from nnunet_invariance.pretraining.methods.alice import AliceOptions
from nnunet_invariance.weights.checkpoint import load_checkpoint, read_metadata
from tests.helpers.pictures import draw_curves
from tests.helpers.pretraining_runs import run_pretraining
from tests.helpers.tiny_pretraining import SHORT, assert_same, batch_of, make_alice, pretrain, tensors


@pytest.fixture
def run_folder(results):
    """Folder of the run in this test's results tree."""
    return results / "pretraining" / "alice__nnUNetPlans__3d_fullres"


@pytest.fixture(scope="module")
def reference(tiny, tmp_path_factory):
    """The finished checkpoint of a run that was never stopped."""
    root = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(root))
        draw_curves(patch)
        return pretrain(tiny)


# ---- output of a run -------------------------------------------------------------------------------------------------


def test_a_run_writes_the_documented_files(tiny, reference):
    folder = reference.parent
    assert {p.name for p in folder.iterdir()} == {
        "checkpoint_final.safetensors", "metrics.csv", "progress.png", "samples.png", "log.txt",
        "manifest.json", "run.json", "lock",
    }  # fmt: skip
    metadata = read_metadata(reference)
    assert metadata["method"] == "alice"
    assert metadata["finished"]
    assert metadata["step"] == metadata["total_steps"] == 6
    assert metadata["patch_size"] == [32, 32, 32]
    assert metadata["channel_names"] == ["MRI"]
    sections = {name.split(".")[0] for name in tensors(reference)}
    assert sections == {"network", "teacher", "heads"}
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [int(r["step"]) for r in rows] == [2, 4, 6]
    for name in ("intra", "mim", "target_entropy", "mean_target_entropy", "effective_rank", "lr"):
        assert all(np.isfinite(float(r[name])) for r in rows)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["cases"]) == 6
    assert manifest["sha256"] == metadata["manifest_sha256"]
    for picture in ("progress.png", "samples.png"):
        assert matplotlib.image.imread(folder / picture).std() > 0


def test_the_teacher_is_the_moving_average_of_the_student(tiny, reference):
    checkpoint = load_checkpoint(reference)
    student, teacher = checkpoint.section("network"), checkpoint.section("teacher")
    moved = [n for n in student if "seg_layers" not in n and not torch.equal(student[n], teacher[n])]
    assert student.keys() == teacher.keys()
    assert len(moved) > len(student) // 2
    alice = make_alice(tiny)
    before = [p.clone() for p in alice.teacher.parameters()]
    with torch.no_grad():
        for p in alice.network.parameters():
            p.add_(1)
    output = alice(alice.make_views(batch_of(alice, 0), torch.Generator().manual_seed(0)), 0.0)
    alice.after_step(output, 0.0)
    for old, now, new in zip(before, alice.teacher.parameters(), alice.network.parameters(), strict=True):
        assert torch.allclose(now, 0.996 * old + 0.004 * new, atol=1e-6)


# ---- stopping and continuing -------------------------------------------------------------------------------


def test_a_run_killed_with_sigkill_ends_bit_identical(tiny, run_folder, reference):
    words = f"-m nnunet_invariance pretrain alice {tiny.name} 3d_fullres -device cpu --epochs 3 --iterations 2 --set"
    command = [sys.executable, *words.split(), *SHORT[2:]]
    process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    latest = run_folder / "checkpoint_latest.safetensors"
    deadline = time.time() + 300
    while not latest.is_file() and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert latest.is_file(), process.stdout.read().decode()[-2000:]
    assert 0 < read_metadata(latest)["step"] < 6
    path = pretrain(tiny, resume=True)
    assert_same(tensors(path), tensors(reference))


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_finishes_the_step_saves_and_continues_bit_identical(tiny, run_folder, reference, workers):
    done = threading.Event()

    def stop_after_the_first_epoch():
        while not done.is_set():
            if (run_folder / "checkpoint_latest.safetensors").is_file():
                # as a scheduler does: every process at once, the workers too
                for process in (*multiprocessing.active_children(), multiprocessing.current_process()):
                    os.kill(process.pid, signal.SIGTERM)
                return
            time.sleep(0.01)

    watcher = threading.Thread(target=stop_after_the_first_epoch)
    watcher.start()
    try:
        with pytest.raises(PretrainingStopped, match="continue with --c"):
            pretrain(tiny, f"workers={workers}")
    finally:
        done.set()
        watcher.join()
    step = read_metadata(run_folder / "checkpoint_latest.safetensors")["step"]
    assert 2 <= step < 6
    path = pretrain(tiny, f"workers={workers}", resume=True)
    assert_same(tensors(path), tensors(reference))
    rows = list(csv.DictReader((run_folder / "metrics.csv").open()))
    whole = list(csv.DictReader((reference.parent / "metrics.csv").open()))
    assert [r["loss"] for r in rows] == [r["loss"] for r in whole]


def test_continuing_a_finished_run_changes_nothing(tiny, run_folder):
    path = pretrain(tiny, "epochs=1")
    stamp = path.stat().st_mtime_ns
    assert pretrain(tiny, "epochs=1", resume=True) == path
    assert path.stat().st_mtime_ns == stamp


def test_the_manifest_stays_the_one_of_the_weights(tiny, run_folder, tmp_path):
    path = pretrain(tiny, "epochs=1")
    before = (path.parent / "manifest.json").read_text()
    cases = tiny.preprocessed / tiny.name / tiny.plans["configurations"]["3d_fullres"]["data_identifier"]
    gone = {file: tmp_path / file.name for file in cases.glob("case_005*")}
    for file, away in gone.items():
        file.rename(away)
    try:
        assert pretrain(tiny, "epochs=1", resume=True) == path  # it is finished
        assert (path.parent / "manifest.json").read_text() == before
        path.rename(path.with_name("checkpoint_latest.safetensors"))
        with pytest.raises(
            WeightsIncompatibleError, match=r"manifest_sha256 differs .*manifest\.json lists what it was"
        ):
            pretrain(tiny, "epochs=1", resume=True)
        assert (path.parent / "manifest.json").read_text() == before
    finally:
        for file, away in gone.items():
            away.rename(file)


def test_a_second_run_moves_the_first_one_aside(tiny, run_folder):
    first = tensors(pretrain(tiny, "epochs=1"))
    pretrain(tiny, "epochs=1", "seed=5")
    moved = [p for p in run_folder.parent.iterdir() if p != run_folder]
    assert len(moved) == 1
    assert moved[0].name.startswith(run_folder.name + "_")
    assert_same(tensors(moved[0] / "checkpoint_final.safetensors"), first)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alignment=sam"], "finished anatomical embedding"),
        (["alignment=elsewhere"], "expected one of"),
        (["patients=(nobody)"], "does not match the name of the case"),
    ],
)
@pytest.mark.parametrize("earlier", [False, True])
def test_refused_input_writes_nothing_and_does_not_move_an_earlier_run(
    tiny, run_folder, reference, words, message, earlier
):
    if earlier:
        shutil.copytree(reference.parent, run_folder)

    def listing():
        return {path: path.stat().st_mtime_ns for path in run_folder.parents[1].rglob("*")}

    before = listing()
    with pytest.raises(InvarianceError, match=message):
        pretrain(tiny, *words)
    assert listing() == before


def test_too_few_volumes_write_nothing(tiny, run_folder, tmp_path):
    cases = tiny.preprocessed / tiny.name / tiny.plans["configurations"]["3d_fullres"]["data_identifier"]
    gone = {file: tmp_path / file.name for file in cases.glob("case_00[1-5]*")}
    for file, away in gone.items():
        file.rename(away)
    try:
        for method in ("alice", "sam"):
            with pytest.raises(TooFewVolumesError, match="1 usable volume"):
                run_pretraining(method, tiny.name, "3d_fullres", device="cpu", settings=SHORT[:4])
    finally:
        for file, away in gone.items():
            away.rename(file)
    assert not run_folder.parent.exists()


def test_a_finished_run_with_other_options_is_not_continued(tiny, run_folder, reference):
    shutil.copytree(reference.parent, run_folder)
    for word, message in (("mask_ratio=0.5", r"mask_ratio: was 0\.75, is 0\.5"), ("epochs=4", "epochs: was 3, is 4")):
        with pytest.raises(WeightsIncompatibleError, match=message):
            pretrain(tiny, word, resume=True)
    assert pretrain(tiny, "timeout=100", resume=True) == run_folder / reference.name


def test_a_second_run_on_the_same_folder_is_refused(tiny, run_folder, reference):
    shutil.copytree(reference.parent, run_folder)
    before = {path.name: path.stat().st_mtime_ns for path in run_folder.iterdir()}
    with lock_folder(run_folder):
        for resume in (False, True):
            with pytest.raises(FolderLockedError, match=rf"in use by process {os.getpid()} on "):
                pretrain(tiny, resume=resume)
    assert {path.name: path.stat().st_mtime_ns for path in run_folder.iterdir() if path.name != "lock"} == {
        name: stamp for name, stamp in before.items() if name != "lock"
    }


def test_continuing_without_a_checkpoint_is_an_error(tiny, run_folder):
    with pytest.raises(WeightsNotFoundError, match="Start without --c"):
        pretrain(tiny, resume=True)
    assert not run_folder.exists()


def test_a_run_with_other_options_is_not_continued(tiny, run_folder, reference):
    shutil.copytree(reference.parent, run_folder)
    (run_folder / "checkpoint_final.safetensors").rename(run_folder / "checkpoint_latest.safetensors")
    with pytest.raises(WeightsIncompatibleError, match=r"mask_ratio: was 0\.75, is 0\.5"):
        pretrain(tiny, "mask_ratio=0.5", resume=True)


# ---- bad input ---------------------------------------------------------------------------------------------


def test_non_finite_losses_stop_the_run_and_keep_the_last_good_state(tiny, run_folder):
    with pytest.raises(NonFiniteLossError, match=r"5 steps in a row.*case_00"):
        pretrain(tiny, "lr=1e20", "warmup=0.0", "epochs=8", "iterations=1")
    latest = run_folder / "checkpoint_latest.safetensors"
    assert latest.is_file()
    assert all(torch.isfinite(t).all() for n, t in tensors(latest).items() if n.startswith("network"))


@pytest.mark.parametrize(
    ("dataset", "configuration", "plans", "error", "text"),
    [
        (
            "Dataset999_None",
            "3d_fullres",
            "nnUNetPlans",
            (DatasetNotFoundError, NotPreprocessedError),
            "Dataset999_None",
        ),
        ("../..", "3d_fullres", "nnUNetPlans", DatasetNotFoundError, "is a path"),
        ("999", "3d_fullres", "nnUNetPlans", DatasetNotFoundError, "999"),
        ("777", "3d_fullres", "otherPlans", NotPreprocessedError, "otherPlans"),
        ("777", "3d_middleres", "nnUNetPlans", UnknownConfigurationError, "3d_middleres"),
        ("777", "2d", "nnUNetPlans", UnsupportedConfigurationError, "2-D"),
    ],
)
def test_input_that_is_missing_or_not_supported_is_named(tiny, run_folder, dataset, configuration, plans, error, text):
    with pytest.raises(error, match=text):
        run_pretraining("alice", dataset, configuration, plans, device="cpu", settings=SHORT)
    assert not run_folder.exists()


def test_a_configuration_that_is_not_preprocessed(tiny, run_folder):
    plans = json.loads(json.dumps(tiny.plans))
    plans["plans_name"] = "notYet"
    plans["configurations"]["3d_fullres"]["data_identifier"] = "notYet_3d_fullres"
    file = tiny.preprocessed / tiny.name / "notYet.json"
    file.write_text(json.dumps(plans))
    try:
        with pytest.raises(NotPreprocessedError, match="nnUNetv2_preprocess"):
            run_pretraining("alice", "777", "3d_fullres", "notYet", device="cpu", settings=SHORT)
    finally:
        file.unlink()


def test_environment_not_set(tiny, run_folder, monkeypatch):
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(EnvironmentNotSetError, match="nnUNet_results"):
        pretrain(tiny)


def test_output_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot be made"):
        pretrain(tiny)
    assert (tmp_path / "file").read_text() == ""


def test_images_folders_that_cannot_be_used(tiny, run_folder, tmp_path):
    with pytest.raises(ImagesFolderError, match="does not exist"):
        pretrain(tiny, images=[tmp_path / "nowhere"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ImagesFolderError, match="contains no image"):
        pretrain(tiny, images=[empty])
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz"):
        (empty / name).write_bytes(b"")
    with pytest.raises(ImagesFolderError, match=r"scan 'a' has 2 channel.*1 of 2 scans"):
        pretrain(tiny, images=[empty])


def test_options_are_checked():
    assert parse_settings(["lr=0.5", "batch_size=3"], AliceOptions) == Settings({"lr": 0.5}, {"batch_size": 3})
    with pytest.raises(OptionError, match="Did you mean 'mask_ratio'"):
        parse_settings(["mask_ration=0.5"], AliceOptions)
    with pytest.raises(OptionError, match="'many' is not a valid int"):
        parse_settings(["batch_size=many"], AliceOptions)


def test_a_missing_device_is_an_error(tiny, run_folder):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(OptionError, match="-device cuda"):
        run_pretraining("alice", "777", "3d_fullres", device="cuda", settings=SHORT)
    assert not Path(run_folder).exists()
