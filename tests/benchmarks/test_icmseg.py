"""The data of benchmarks/studies/icmseg_styles.py: the contrasts, and data sets without leakage."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks.studies.icmseg_data import (
    ABDOMEN_MR,
    CONTRASTS,
    ORGANS,
    biased,
    inverted,
    lay_out_abdomen,
    lay_out_hippocampus,
    lay_out_prostate,
    remapped,
)
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.scoring.label_maps import match_labels

IMAGE = np.random.default_rng(0).integers(0, 40, (4, 5, 6)).astype(np.float32)


def test_inverted_reverses_the_order_of_intensities():
    assert np.array_equal(
        np.argsort(-inverted(IMAGE, 0), axis=None, kind="stable"), np.argsort(IMAGE, axis=None, kind="stable")
    )


def test_remapped_follows_its_formula_on_ranks_and_is_not_monotone():
    flat = IMAGE.ravel().tolist()
    for value, new in list(zip(flat, remapped(IMAGE, 0).ravel().tolist(), strict=True))[:30]:
        u = (sum(v < value for v in flat) + 0.5 * sum(v == value for v in flat)) / len(flat)
        assert new == pytest.approx(math.exp(-4 * u) + 0.5 * math.exp(-(((u - 0.6) / 0.1) ** 2)))
    assert np.allclose(remapped(7 * IMAGE + 100, 0), remapped(IMAGE, 0))
    curve = remapped(np.arange(1000.0), 0)
    assert [*np.sign(np.diff(curve))[np.flatnonzero(np.diff(np.sign(np.diff(curve)))) + 1]] == [1, -1]


def test_the_bias_field_is_smooth_depends_on_the_seed_and_stays_in_its_range():
    ratio = biased(np.ones_like(IMAGE) + np.pad(np.zeros((3, 5, 6)), ((1, 0), (0, 0), (0, 0)), constant_values=-1), 3)
    field = np.log(ratio[1:])
    assert -1.2 - 1e-6 <= field.min() < field.max() <= 1.2 + 1e-6
    assert not np.allclose(biased(IMAGE, 1), biased(IMAGE, 2))
    assert np.array_equal(biased(IMAGE, 1), biased(IMAGE, 1))


def write(path: Path, array: np.ndarray, vector: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(
        sitk.JoinSeries([sitk.GetImageFromArray(a) for a in array]) if vector else sitk.GetImageFromArray(array), path
    )


def cases(folder: Path) -> set[str]:
    return {path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").iterdir()}


def test_held_out_cases_are_the_same_in_every_contrast_and_never_trained_on(tmp_path):
    data = tmp_path / "data" / "Dataset004_Hippocampus"
    for i in range(8):
        write(data / "imagesTr" / f"h_{i}_0000.nii.gz", IMAGE + i)
        write(data / "labelsTr" / f"h_{i}.nii.gz", (IMAGE > 20).astype(np.uint8))
    (data / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}}))
    for _ in range(2):
        task = lay_out_hippocampus(tmp_path / "data", tmp_path / "raw", 0, n_test=3)
    assert len(task.targets) == len(CONTRASTS)
    held_out = cases(tmp_path / "raw" / task.targets[0])
    assert all(cases(tmp_path / "raw" / target) == held_out for target in task.targets)
    assert len(held_out) == 3
    assert not held_out & cases(tmp_path / "raw" / task.source)
    assert len(cases(tmp_path / "raw" / task.source)) == 5
    with pytest.raises(ComparisonError, match="another seed"):
        lay_out_hippocampus(tmp_path / "data", tmp_path / "raw", 1, n_test=3)
    with pytest.raises(ComparisonError, match=r"does not exist\. Give the shared data folder"):
        lay_out_hippocampus(tmp_path, tmp_path / "other", 0)


def test_label_values_of_both_abdomens_are_matched_by_name(tmp_path):
    data, numbers = tmp_path / "abdomen_ct_mr", np.arange(120, dtype=np.uint8).reshape(4, 5, 6)
    for image, labels in (
        ("example_ct", "example_seg_fast_force_split"),
        ("example_ct_sm", "example_seg"),
        ("example_mr_sm", "example_seg_mr"),
    ):
        write(data / f"{image}.nii.gz", 1000 * IMAGE - 900)
        write(data / f"{labels}.nii.gz", numbers.clip(0, 117))
    task = lay_out_abdomen(tmp_path, tmp_path / "raw", 0)
    described = [
        json.loads((tmp_path / "raw" / name / "dataset.json").read_text()) for name in (task.source, ABDOMEN_MR)
    ]
    trained = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "raw" / task.source / "labelsTr" / "ct.nii.gz"))
    assert set(np.unique(trained)) == set(range(len(ORGANS) + 1))
    matched = match_labels(described[0]["labels"], described[1]["labels"], task.names[ABDOMEN_MR])
    assert matched.classes == tuple(ORGANS)
    for name, (ct, mr) in ORGANS.items():
        assert described[0]["labels"][name] == matched.values[mr] == trained.flat[ct]
    image = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "raw" / task.source / "imagesTr" / "ct_0000.nii.gz"))
    assert (image.min(), image.max()) == (-125, 275)
    assert described[0]["channel_names"]["0"].casefold() != "ct"


def test_prostate_cases_keep_the_names_of_the_patients(tmp_path):
    for kind in ("mr", "us"):
        for i in range(3):
            write(tmp_path / "prostate_mr_us" / f"{kind}_images" / f"case{i}.nii.gz", IMAGE)
            masks = np.stack([IMAGE > 20, IMAGE < 3]).astype(np.float64)
            write(tmp_path / "prostate_mr_us" / f"{kind}_labels" / f"case{i}.nii.gz", masks, vector=True)
    task = lay_out_prostate(tmp_path, tmp_path / "raw", 0)
    assert (
        cases(tmp_path / "raw" / task.source)
        == cases(tmp_path / "raw" / task.targets[0])
        == {"case0", "case1", "case2"}
    )
    assert task.parts == 3
    gland = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "raw" / task.source / "labelsTr" / "case0.nii.gz"))
    assert np.array_equal(gland, IMAGE > 20)
