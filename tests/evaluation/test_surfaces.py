"""NSD and HD95 against a loop over surface voxels, and at their ends."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_invariance.errors import ComparisonError, MissingPackageError
from nnunet_invariance.evaluation.scoring import surfaces
from nnunet_invariance.evaluation.scoring.scores import score_case
from nnunet_invariance.evaluation.scoring.surfaces import require_monai, surface_scores


def slow_scores(reference: np.ndarray, prediction: np.ndarray, spacing, tolerance: float) -> tuple[float, float]:
    def surface(mask: np.ndarray) -> list[tuple]:
        voxels = {tuple(v) for v in np.argwhere(mask)}
        steps = [tuple(s * (i == axis) for i in range(mask.ndim)) for axis in range(mask.ndim) for s in (1, -1)]
        return [v for v in voxels if any(tuple(map(sum, zip(v, s, strict=True))) not in voxels for s in steps)]

    def distances(ours: list[tuple], others: list[tuple]) -> list[float]:
        return [min(math.dist(np.multiply(a, spacing), np.multiply(b, spacing)) for b in others) for a in ours]

    r, p = surface(reference), surface(prediction)
    there, back = distances(p, r), distances(r, p)
    nsd = sum(d <= tolerance for d in (*there, *back)) / (len(p) + len(r))
    return nsd, max(np.percentile(there, 95), np.percentile(back, 95))


@pytest.mark.parametrize(
    ("shape", "spacing"), [((9, 10, 8), (1, 1, 1)), ((7, 9, 9), (3.0, 0.7, 1.2)), ((1, 16, 15), (999, 0.5, 2.0))]
)
@pytest.mark.parametrize("tolerance", [1.0, 2.5])
def test_surface_scores_are_those_of_a_loop(shape, spacing, tolerance):
    rng = np.random.default_rng(0)
    grid = np.indices(shape) - (np.array(shape) / 2).reshape(3, 1, 1, 1)
    reference, prediction = (np.square(grid).sum(0) + rng.normal(0, 3, shape) < limit for limit in (14, 9))
    cut = (slice(None), slice(None), slice(None)) if shape[0] > 1 else (0,)
    wanted = slow_scores(reference[cut], prediction[cut], spacing[len(cut) == 1 :], tolerance)
    assert surface_scores(reference, prediction, spacing, tolerance) == pytest.approx(wanted, rel=1e-5)
    assert surface_scores(reference, reference, spacing, tolerance) == (1, 0)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_a_shift_is_the_distance_in_millimetres():
    mask = np.zeros((12, 12, 12), dtype=bool)
    mask[3:7, 3:7, 3:7] = True
    nsd, hd95 = surface_scores(mask, np.roll(mask, 2, 0), (1.5, 1, 1), 3.0)
    assert (nsd, hd95) == (1, pytest.approx(3.0))
    assert surface_scores(mask, np.roll(mask, 2, 0), (1.5, 1, 1), 2.9)[0] < 1


def test_empty_masks():
    empty, full = np.zeros((3, 4, 5), dtype=bool), np.ones((3, 4, 5), dtype=bool)
    assert all(map(math.isnan, surface_scores(empty, empty, (1, 1, 1), 1)))
    for pair in itertools.permutations((empty, full)):
        assert surface_scores(*pair, (2, 1, 1), 1) == (0, pytest.approx(math.sqrt(6**2 + 4**2 + 5**2)))


def write(path: Path, array: np.ndarray, spacing=(1.0, 1.0, 1.0)) -> Path:
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


def test_scores_use_the_geometry_of_the_reference_and_leave_out_the_ignored(tiny, tmp_path):
    array = np.zeros((8, 9, 10))
    array[2:5, 2:6, 2:6] = 1
    moved = np.roll(array, 1, 2)  # along x
    array[7, 8, 9] = 3
    reference, prediction = write(tmp_path / "r.nii.gz", array, (2.5, 1, 1)), write(tmp_path / "p.nii.gz", moved)
    dataset = {"labels": {"background": 0, "one": 1, "two": 2, "ignore": 3}, "file_ending": ".nii.gz"}
    plans = tiny.preprocessed / tiny.name / "nnUNetPlans.json"
    found = score_case(reference, prediction, plans, dataset, tolerance=2.5)
    assert found["one"] == (pytest.approx(0.75), 1, pytest.approx(2.5), 48, 48)
    assert all(map(math.isnan, found["two"][:3]))
    without = score_case(reference, prediction, plans, dataset)
    assert without["one"][0] == found["one"][0]
    assert math.isnan(without["one"][1])


@pytest.mark.parametrize("which", ["r", "p"])
def test_another_label_set_is_refused(tiny, tmp_path, which):
    arrays = {"r": np.ones((4, 4, 4)), "p": np.ones((4, 4, 4))}
    arrays[which][0, 0, 0] = 7
    files = [write(tmp_path / f"{name}.nii.gz", array) for name, array in arrays.items()]
    dataset = {"labels": {"background": 0, "one": 1}, "file_ending": ".nii.gz"}
    plans = tiny.preprocessed / tiny.name / "nnUNetPlans.json"
    with pytest.raises(ComparisonError, match=rf"{which}\.nii\.gz contains 1 unknown label, 7; dataset\.json has 0, 1"):
        score_case(*files, plans, dataset)


def test_a_missing_monai_is_named(monkeypatch):
    require_monai()
    monkeypatch.setattr(surfaces.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"monai, which is not installed.*pip install"):
        require_monai()
