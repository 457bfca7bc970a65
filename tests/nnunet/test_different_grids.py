"""A case whose channels lie on different grids, given to the commands as a user types them: both files are named."""

import json
import re
from contextlib import redirect_stderr
from io import StringIO

import pytest
import SimpleITK as sitk

from tests.helpers.commands import run_here
from tests.helpers.tiny_dataset import cut_down
from tests.helpers.tiny_modalities import DIFFERENT, write_apart

PLANS = "GridsPlans"


def refusal(*words: str) -> str:
    """What a command that is refused says, on one line and without a traceback."""
    with redirect_stderr(StringIO()) as printed:
        assert run_here("nnunet-invariance", *words) == 2
    assert "Traceback" not in printed.getvalue()
    return printed.getvalue()


def test_complete_writes_nothing(modalities, tmp_path):
    write_apart(tmp_path / "in")
    assert re.search(DIFFERENT, refusal("complete", str(tmp_path / "in"), str(tmp_path / "out"), "-d", "779"))
    assert not (tmp_path / "out").exists()


def test_a_comparison_trains_nothing(modalities, tmp_path):
    labels = write_apart(tmp_path / "data" / "imagesTs")
    (tmp_path / "data" / "labelsTs").mkdir()
    sitk.WriteImage(labels, tmp_path / "data" / "labelsTs" / "a.nii.gz")
    plans = cut_down(modalities.plans, PLANS, iterations_per_epoch=1, val_iterations_per_epoch=1)
    (modalities.preprocessed / modalities.name / f"{PLANS}.json").write_text(json.dumps(plans))
    words = ["evaluate", "missing-modality", "779", "3d_fullres", "-p", PLANS, "-device", "cpu"]
    words += ["--trainers", "PUIRTrainer_scratch_1epoch", "--test", str(tmp_path / "data")]
    assert re.search(DIFFERENT, refusal(*words, "--out", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_scans_for_pretraining_are_refused_or_left_out(modalities, tmp_path):
    write_apart(tmp_path / "scans")
    words = ["pretrain", "puir", "779", "3d_fullres", "--images", str(tmp_path / "scans"), "-device", "cpu"]
    assert re.search(DIFFERENT, refusal(*words, "--epochs", "1", "--iterations", "1"))
