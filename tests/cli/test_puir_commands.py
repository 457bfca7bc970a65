"""nnU-Net's commands with PUIRTrainer and cases with a missing modality; nnU-Net finds the planner by name."""

import json

import pytest
import SimpleITK as sitk

from nnunet_invariance.cli.main import main
from tests.helpers import tiny_modalities
from tests.helpers.commands import run_here, stock
from tests.helpers.tiny_dataset import cut_down

TRAINER, PLANS = "PUIRTrainer_scratch_1epoch", "PUIRCommandsPlans"


def test_train_and_predict_with_missing_modalities(modalities, tmp_path):
    plans = cut_down(modalities.plans, PLANS, iterations_per_epoch=2, val_iterations_per_epoch=1, prior=4, mirroring=[])
    (modalities.preprocessed / modalities.name / f"{PLANS}.json").write_text(json.dumps(plans))
    assert run_here("nnUNetv2_train", "779", "3d_fullres", "0", "-p", PLANS, "-tr", TRAINER, "-device", "cpu") == 0
    tiny_modalities.write_tests(tmp_path / "in")
    assert main(["complete", str(tmp_path / "in"), str(tmp_path / "full"), "-d", "779"]) == 0
    where = ("-d", "779", "-c", "3d_fullres", "-f", "0", "-p", PLANS, "-tr", TRAINER, "-device", "cpu")
    words = ("-i", tmp_path / "full", "-o", tmp_path / "out", *where, "--disable_tta")
    assert run_here("nnUNetv2_predict", *words) == 0
    for name, (shape, _) in tiny_modalities.TEST.items():
        labels = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "out" / f"{name}.nii.gz"))
        assert labels.shape == shape


@pytest.mark.slow
@pytest.mark.commands
def test_the_planner_is_found(modalities):
    stock("nnUNetv2_plan_experiment", "-d", "779", "-pl", "PUIRPlanner", nnUNet_n_proc_DA="1")
    plans = json.loads((modalities.preprocessed / modalities.name / "PUIRPlans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["data_identifier"] == "nnUNetPlans_3d_fullres"
