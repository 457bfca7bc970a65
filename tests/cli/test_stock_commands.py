"""nnU-Net's commands in new processes, with our trainers."""

import json
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from tests.helpers.commands import check_predictions, command_line, stock
from tests.helpers.tiny_dataset import cut_down

TRAINER = "AliceTrainer_scratch_1epoch"
PLANS = "StockCommandsPlans"
MODEL = f"{TRAINER}__{PLANS}__3d_fullres"

pytestmark = pytest.mark.commands


@pytest.fixture(scope="module")
def trained(tiny) -> Path:
    """Folder of a model that `nnUNetv2_train` trained for one epoch."""
    plans = cut_down(tiny.plans, PLANS, iterations_per_epoch=2, val_iterations_per_epoch=1, mirroring=[2])
    (tiny.preprocessed / tiny.name / f"{PLANS}.json").write_text(json.dumps(plans))
    stock("nnUNetv2_train", "777", "3d_fullres", "0", "-p", PLANS, "-tr", TRAINER, "-device", "cpu", "--npz")
    return tiny.results / tiny.name / MODEL


def test_train_then_predict_in_a_new_process(trained, tiny, tmp_path):
    assert (trained / "fold_0/checkpoint_final.pth").is_file()
    summary = json.loads((trained / "fold_0/validation/summary.json").read_text())
    assert set(summary["mean"]) == {"1", "2"}
    images = tiny.raw / tiny.name / "imagesTs"
    where = ("-d", "777", "-c", "3d_fullres", "-f", "0", "-p", PLANS, "-tr", TRAINER, "-npp", "1", "-nps", "1")
    stock("nnUNetv2_predict", "-i", images, "-o", tmp_path, *where, "-device", "cpu", "--disable_tta")
    check_predictions(tmp_path)


@pytest.mark.slow
def test_continue_and_validate(trained):
    words = ("nnUNetv2_train", "777", "3d_fullres", "0", "-p", PLANS, "-tr", TRAINER, "-device", "cpu")
    log = trained / "fold_0" / "validation/summary.json"
    for flag in ("--c", "--val"):
        log.unlink()
        stock(*words, flag)
        assert log.is_file(), flag


@pytest.mark.slow
def test_a_killed_training_continues_from_its_last_epoch(trained, tiny):
    longer = TRAINER.replace("1epoch", "2epochs")
    folder = tiny.results / tiny.name / MODEL.replace(TRAINER, longer) / "fold_0"
    words = ("nnUNetv2_train", "777", "3d_fullres", "0", "-p", PLANS, "-tr", longer, "-device", "cpu")
    training = subprocess.Popen(command_line(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "checkpoint_latest.pth").is_file() and training.poll() is None:
            assert time.monotonic() < deadline, "no checkpoint after the first epoch"
            time.sleep(0.02)
    finally:
        training.kill()
        training.wait()
    assert not (folder / "checkpoint_final.pth").exists()
    printed = stock(*words, "--c")
    assert "Epoch 1" in printed
    assert "Epoch 0" not in printed
    assert (folder / "checkpoint_final.pth").is_file()


@pytest.mark.slow
def test_evaluate_find_best_and_export(trained, tiny, tmp_path):
    labels = tiny.preprocessed / tiny.name / "gt_segmentations"
    cases = tmp_path / "cases"
    cases.mkdir()
    for file in (trained / "fold_0/validation").glob("*.nii.gz"):
        shutil.copy(labels / file.name, cases)
    files = ("-djfile", trained / "dataset.json", "-pfile", trained / "plans.json", "-np", "1")
    stock("nnUNetv2_evaluate_folder", cases, trained / "fold_0/validation", *files, "-o", tmp_path / "summary.json")
    assert "foreground_mean" in json.loads((tmp_path / "summary.json").read_text())

    where = ("-c", "3d_fullres", "-tr", TRAINER, "-p", PLANS, "-f", "0")
    stock("nnUNetv2_find_best_configuration", "777", *where, "-np", "1")
    assert (tiny.results / tiny.name / "inference_information.json").is_file()

    archive = tmp_path / "model.zip"
    stock("nnUNetv2_export_model_to_zip", "-d", "777", "-o", archive, *where)
    assert f"{tiny.name}/{MODEL}/fold_0/checkpoint_final.pth" in zipfile.ZipFile(archive).namelist()
    results = tmp_path / "results"
    results.mkdir()
    stock("nnUNetv2_install_pretrained_model_from_zip", archive, nnUNet_results=str(results))
    images = tiny.raw / tiny.name / "imagesTs"
    words = ("-i", images, "-o", tmp_path / "out", "-d", "777", *where, "-device", "cpu", "--disable_tta")
    stock("nnUNetv2_predict", *words, nnUNet_results=str(results))
    check_predictions(tmp_path / "out")


@pytest.mark.slow
def test_a_misspelt_trainer_name_on_the_command_line(tiny):
    words = command_line("nnUNetv2_train", "777", "3d_fullres", "0", "-tr", "AliceTrainr_1epoch", "-device", "cpu")
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Nearest trainers of nnunet_invariance: AliceTrainer_1epoch" in result.stderr
