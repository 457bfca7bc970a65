"""The data of benchmarks/studies/puir_real.py: separate patients, block means, and cells that did not run."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from benchmarks.common import Steps
from benchmarks.studies import puir_real
from benchmarks.studies.puir_data import ABOVE, LEAST, Task, lay_out_brats, lay_out_pgbm
from benchmarks.studies.puir_held_out import Average
from benchmarks.studies.puir_tables import publish
from benchmarks.studies.raw_data import link_cases
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.pretraining.methods.puir_translation import PUIRTranslation
from nnunet_invariance.weights.locate import LATEST, pretraining_folder

CHANNELS = ("T1", "T1ce", "T2", "FLAIR", "ADC", "nRCBV_x100")
PATIENTS = ("PGBM-001", "PGBM-003")
SCANS = ("brats_2013_pat0005_1", "brats_2013_pat0006_1")


def write(path: Path, array: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), path)
    return array


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(path))


def names(folder: Path) -> set[str]:
    return {path.name.split(".")[0] for path in folder.iterdir()}


@pytest.fixture
def data(tmp_path) -> Path:
    """Small versions of both collections: six channels and two visits each, and two scans with a mask."""
    rng, folder = np.random.default_rng(0), tmp_path / "data"
    pgbm = folder / "Dataset900_PGBM"
    for case in (f"{patient}_v{visit}" for patient in PATIENTS for visit in (0, 1)):
        for channel in range(len(CHANNELS)):
            write(pgbm / "imagesTr" / f"{case}_{channel:04d}.nii.gz", rng.integers(0, 99, (3, 4, 6)).astype(np.int16))
        write(pgbm / "labelsTr" / f"{case}.nii.gz", rng.integers(0, 2, (3, 4, 6)).astype(np.uint8))
    described = {"channel_names": dict(enumerate(CHANNELS)), "labels": {"background": 0, "tumour": 1}}
    (pgbm / "dataset.json").write_text(json.dumps(described))
    for scan in SCANS:
        mask = np.zeros((8, 10, 12), np.float32)
        mask[2:6, 1:9, 4:10] = 1
        write(folder / "brats2015_2ch" / scan / "brainmask.nii.gz", mask)
        for name in ("Flair", "T1c"):
            image = rng.normal(0, 3, mask.shape).astype(np.float32)
            write(folder / "brats2015_2ch" / scan / f"{name}_subtrMeanDivStd.nii.gz", image)
        labels = rng.integers(0, 5, mask.shape).astype(np.float32)
        write(folder / "brats2015_2ch" / scan / "OTMultiClass.nii.gz", labels)
    return folder


@pytest.mark.integration
@pytest.mark.parametrize(("layout", "patients"), [(lay_out_pgbm, PATIENTS), (lay_out_brats, SCANS)])
def test_training_and_test_patients_differ(data, tmp_path, layout, patients):
    for draw in (0, 1, 0):
        folder = tmp_path / "raw" / layout(data, tmp_path / "raw", draw).dataset
        trained, tested = names(folder / "labelsTr"), names(folder / "labelsTs")
        assert {name[: len(patients[0])] for name in trained} == {patients[draw]}
        assert {name[: len(patients[0])] for name in tested} == {patients[1 - draw]}
        channels = len(json.loads((folder / "dataset.json").read_text())["channel_names"])
        assert names(folder / "imagesTs") == {f"{case}_{c:04d}" for case in tested for c in range(channels)}
    with pytest.raises(ComparisonError, match=r"does not exist\. Give the shared data folder"):
        layout(tmp_path, tmp_path / "other", 0)


def test_voxels_are_block_means_and_a_block_is_tumour_from_one_half_on(data, tmp_path):
    folder = tmp_path / lay_out_pgbm(data, tmp_path, 0).dataset
    for kind, name in (("images", "PGBM-001_v1_0004"), ("labels", "PGBM-001_v1")):
        whole = read(data / "Dataset900_PGBM" / f"{kind}Tr" / f"{name}.nii.gz").astype(float)
        blocks = read(folder / f"{kind}Tr" / f"{name}.nii.gz")
        assert blocks.shape == (3, 2, 3)
        for z, y, x in np.ndindex(blocks.shape):
            mean = whole[z, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean()
            assert blocks[z, y, x] == (pytest.approx(mean) if kind == "images" else float(mean >= 0.5))


def test_the_brain_is_cropped_and_brighter_than_the_background(data, tmp_path):
    source, case = data / "brats2015_2ch" / SCANS[0], SCANS[0]
    folder = tmp_path / lay_out_brats(data, tmp_path, 0).dataset
    inside = read(source / "T1c_subtrMeanDivStd.nii.gz")[2:6, 1:9, 4:10]
    found = read(folder / "imagesTr" / f"{case}_0001.nii.gz")
    assert found.shape == (2, 4, 3)
    assert found[0, 0, 0] == pytest.approx(np.maximum(inside[:2, :2, :2] + ABOVE, LEAST).mean(), rel=1e-5)
    assert found.min() >= LEAST
    image = sitk.ReadImage(folder / "imagesTr" / f"{case}_0000.nii.gz")
    assert image.GetOrigin() == pytest.approx((4.5, 1.5, 2.5))  # middle of the first block of the box
    labels = read(source / "OTMultiClass.nii.gz")[2:6, 1:9, 4:10] > 0
    assert read(folder / "labelsTr" / f"{case}.nii.gz")[1, 3, 2] == (labels[2:, 6:, 4:].mean() >= 0.5)


def test_the_average_uses_only_the_given_modalities():
    x = torch.randn(2, 3, 4, 4, 4)
    present = torch.tensor([[True, False, True], [False, True, False]])
    average = Average(1.0)(x, present)
    assert torch.allclose(average[0], ((x[0, 0] + x[0, 2]) / 2).expand(3, 4, 4, 4))
    assert torch.equal(average[1], x[1, 1].expand(3, 4, 4, 4))
    assert not Average(0.0)(x, present).any()


def test_cells_that_did_not_run_are_listed(tmp_path):
    (tmp_path / "work" / "brats0").mkdir(parents=True)
    (tmp_path / "work" / "brats0" / "steps.json").write_text('{"plan": {"command": "x", "seconds": 1.0}}')
    (tmp_path / "work" / "brats0" / "held_out.json").write_text('{"all constraints": {"error_own": 0.5}}')
    publish(tmp_path / "work", tmp_path / "out")
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "| all constraints | 0.500 |" in text
    missing = text[text.index("## Not run") :].splitlines()
    assert "- pgbm, draw 0: nothing is run" in missing
    assert "- brats, draw 0: segmentation" in missing
    assert "- brats, draw 0: pre-training, without inv" in missing
    assert "- brats, draw 0: pre-training, all constraints" not in missing
    assert json.loads((tmp_path / "out" / "results.json").read_text())["brats, draw 0"]["seconds"] == {"plan": 1.0}


def test_the_test_cases_of_linked_data_are_not_among_the_training_cases(data, tmp_path):
    source, raw, test = data / "Dataset900_PGBM", tmp_path / "raw", {"PGBM-001_v0", "PGBM-003_v1"}
    link_cases(source, raw, test)
    assert names(raw / "labelsTs") == test
    assert names(raw / "labelsTr") == {"PGBM-001_v1", "PGBM-003_v0"}
    assert {name[:-5] for name in names(raw / "imagesTs")} == test
    assert len(names(raw / "imagesTr")) == 2 * len(CHANNELS)
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 2


@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupted_translation_continues(tmp_path, monkeypatch, begun):
    commands: list[list[str]] = []

    def stop(self, name, command, **_):
        commands.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(Steps, "run", stop)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    folder = pretraining_folder(PUIRTranslation.name, "Dataset910_PGBM0", puir_real.PLANS, puir_real.CONFIGURATION)
    folder.mkdir(parents=True)
    if begun:
        (folder / LATEST).touch()
    args = argparse.Namespace(work=tmp_path, transfer_steps=10, seed=0, device="cpu")
    draw = puir_real.Draw("pgbm", 0, Task("Dataset910_PGBM0", (4, 4, 4), None, [], []), args)
    with pytest.raises(KeyboardInterrupt):
        puir_real.transfer(draw, Steps(tmp_path))
    assert ("--c" in commands[0]) == begun
