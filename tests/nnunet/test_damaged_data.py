"""Damaged scans, preprocessed cases, plans, dataset.json and caches: named, skipped and counted, or rebuilt."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_invariance.errors import (
    DamagedFileError,
    ImagesFolderError,
    InvarianceError,
    NotPreprocessedError,
    WorkerError,
)
from nnunet_invariance.nnunet import unlabelled_images
from nnunet_invariance.nnunet.cases import load_volume, make_manifest, scan_cases
from nnunet_invariance.nnunet.grids import readable_training_images
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset, read_dataset_json, read_plans
from nnunet_invariance.nnunet.unlabelled_images import preprocess_images
from tests.helpers.damaged_images import damaged_images

CELL = (4, 4, 4)


@pytest.fixture
def dataset(tiny, tmp_path, monkeypatch) -> Path:
    """Copy of the preprocessed data set that a test may damage; nnUNet_preprocessed names its parent."""
    shutil.copytree(tiny.preprocessed / tiny.name, tmp_path / "preprocessed" / tiny.name)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    for module in ("nnunetv2.paths", "nnunetv2.utilities.dataset_name_id_conversion"):
        monkeypatch.setattr(f"{module}.nnUNet_preprocessed", str(tmp_path / "preprocessed"), raising=False)
    return tmp_path / "preprocessed" / tiny.name


@pytest.fixture
def planned(tiny, dataset):
    return open_planned_dataset(tiny.name, tiny.configuration)


def write_scan(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(exist_ok=True)
    voxels = np.random.default_rng(seed).normal(100, 20, (24, 26, 28)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))


class InProcess:
    """Runs the jobs of a pool at once, so that a test need not start processes."""

    def __init__(self, *_: object, **__: object) -> None:
        from concurrent.futures import Future

        self.future = Future

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def submit(self, function, *arguments):
        future = self.future()
        try:
            future.set_result(function(*arguments))
        except InvarianceError as error:
            future.set_exception(error)
        return future


def test_damaged_scans_are_named_skipped_and_counted(planned, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(unlabelled_images, "ProcessPoolExecutor", InProcess)
    folder, number = tmp_path / "scans", 0
    write_scan(folder / "good_1.nii.gz")
    write_scan(folder / "good [2]_0000.nii.gz", seed=1)
    for number, _ in enumerate(damaged_images(tmp_path / "scan.nii.gz")):
        shutil.copy(tmp_path / "scan.nii.gz", folder / f"bad_{number:02d}.nii.gz")
    with caplog.at_level(logging.WARNING):
        (found,) = preprocess_images([folder], planned)
    assert [case.name for case in found.skipped] == [f"bad_{n:02d}" for n in range(number + 1)]
    for case in found.skipped:
        assert f"skipped scan {case.name} of {folder}: {folder / case.name}.nii.gz" in caplog.text
    manifest = make_manifest([found.folder], 1, CELL, 2, already_skipped=found.skipped)
    assert sorted(case.name for case in manifest.cases) == ["good [2]", "good_1"]
    assert [case["name"] for case in manifest.to_dict()["skipped"]] == [case.name for case in found.skipped]


def test_a_folder_of_damaged_scans_only_is_an_error(planned, tmp_path, monkeypatch):
    monkeypatch.setattr(unlabelled_images, "ProcessPoolExecutor", InProcess)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "bad.nii.gz").write_bytes(b"")
    with pytest.raises(ImagesFolderError, match=r"no scan can be used; the first one: .*bad\.nii\.gz cannot be read"):
        preprocess_images([tmp_path / "scans"], planned)


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.integration
def test_a_worker_that_is_killed_is_an_error_with_the_remedy(planned, tmp_path, monkeypatch):
    monkeypatch.setattr(unlabelled_images, "preprocess_scan", die)
    monkeypatch.setattr(unlabelled_images, "default_num_processes", 1)
    for number in range(3):
        write_scan(tmp_path / "scans" / f"s{number}.nii.gz")
    with pytest.raises(WorkerError, match=r"(?s)0 of 3 scans are finished .*s0, s1, s2.*nnUNet_def_n_proc"):
        preprocess_images([tmp_path / "scans"], planned)


def test_a_damaged_record_of_the_cache_preprocesses_all_scans_again(planned, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(unlabelled_images, "ProcessPoolExecutor", InProcess)
    write_scan(tmp_path / "scans" / "a.nii.gz")
    (first,) = preprocess_images([tmp_path / "scans"], planned)
    record = first.folder.with_suffix(".json")
    before = record.read_text()
    record.write_text(before[:-5])
    assert preprocess_images([tmp_path / "scans"], planned) == [first]
    assert "not a valid JSON file" in caplog.text
    assert record.read_text() == before
    assert (first.folder / "a.pkl").is_file()


@pytest.mark.parametrize("content", ["", '{"case_000": {"key"', "[1, 2]", '{"case_000": 5, "case_001": {"key": "x"}}'])
def test_a_damaged_cache_of_inspections_is_rebuilt(planned, content):
    cases, skipped = scan_cases(planned.folder, 1, CELL)
    cache = planned.folder.parent / f"{planned.folder.name}.nnunet_invariance_scan.json"
    before = json.loads(cache.read_text())
    cache.write_text(content)
    assert scan_cases(planned.folder, 1, CELL) == (cases, skipped)
    assert json.loads(cache.read_text()) == before
    for entry in before.values():
        entry.pop("shape", None)
    cache.write_text(json.dumps(before))
    assert scan_cases(planned.folder, 1, CELL) == (cases, skipped)


def test_case_names_with_brackets(planned):
    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        shutil.copy(planned.folder / f"case_000{ending}", planned.folder / f"[1]*?{ending}")
    cases, _ = scan_cases(planned.folder, 1, CELL)
    assert "[1]*?" in [case.name for case in cases]
    assert scan_cases(planned.folder, 1, CELL)[0] == cases


def damage(file: Path, how: str) -> None:
    if how == "deleted":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 4 : 3 * len(content) // 4] = os.urandom(len(content) // 2)
        file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("ending", "how"),
    [
        (".pkl", "deleted"),
        (".pkl", "truncated"),
        (".b2nd", "truncated"),
        (".b2nd", "overwritten"),
        (".b2nd", "deleted"),
    ],
)
def test_damaged_preprocessed_cases_are_skipped_and_named_when_they_are_read(planned, ending, how):
    cases, _ = scan_cases(planned.folder, 1, CELL)
    damage(planned.folder / f"case_001{ending}", how)
    with pytest.raises(NotPreprocessedError, match=r"case case_001 in .* cannot be read .*Preprocess it again"):
        load_volume(cases[1])[:]
    cache = planned.folder.parent / f"{planned.folder.name}.nnunet_invariance_scan.json"
    cache.unlink()
    left, skipped = scan_cases(planned.folder, 1, CELL)
    assert "case_001" not in [case.name for case in left]
    assert [case.name for case in skipped] == ([] if (ending, how) == (".b2nd", "deleted") else ["case_001"])


def test_a_damaged_raw_training_scan_is_skipped_and_named(planned, tmp_path):
    """nnU-Net preprocesses a scan with NaN without a message, so that only its raw file shows the damage."""
    raw = {case: [Path(shutil.copy(files[0], tmp_path))] for case, files in readable_training_images(planned).items()}
    assert len(raw) == 6
    assert scan_cases(planned.folder, 1, CELL, raw=raw)[1] == []
    voxels = np.full((40, 40, 40), np.nan, np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(raw["case_001"][0]))
    cases, (skipped,) = scan_cases(planned.folder, 1, CELL, raw=raw)
    assert len(cases) == 5
    assert skipped.name == "case_001"
    assert skipped.reason.startswith(
        f"was preprocessed from a damaged image: {raw['case_001'][0]} contains 64000 voxels"
    )
    manifest = make_manifest([planned.folder], 1, CELL, 2, raw={planned.folder: raw})
    assert [entry["name"] for entry in manifest.to_dict()["skipped"]] == ["case_001"]


def test_a_folder_that_was_emptied_during_a_run(planned):
    cases, _ = scan_cases(planned.folder, 1, CELL)
    volume = load_volume(cases[0])
    shutil.rmtree(planned.folder)
    planned.folder.mkdir()
    with pytest.raises(NotPreprocessedError, match="deleted or damaged after it was inspected"):
        load_volume(cases[0])
    with pytest.raises(NotPreprocessedError, match="contains no preprocessed case"):
        scan_cases(planned.folder, 1, CELL)
    assert volume.shape == (1, *cases[0].shape)


def test_two_formats_in_one_folder_are_named(planned):
    (planned.folder / "old.npz").write_bytes(b"")
    with pytest.raises(NotPreprocessedError, match=r"two formats, \.b2nd and \.npz"):
        scan_cases(planned.folder, 1, CELL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], r"nnUNetPlans\.json is not a valid JSON file: .* line \d+"),
        (lambda text: "", "it is empty"),
        (lambda text: "[]", "it is \\[\\], expected an object"),
        (lambda text: "{}", "dataset_name is missing, expected a text"),
        (
            lambda text: text.replace('"configurations"', '"configuration"'),
            "configurations is missing, expected an object",
        ),
        (lambda text: text.replace('"patch_size"', '"patch"'), r"3d_fullres.*patch_size is missing, expected a list"),
        (lambda text: text.replace('"spacing": [', '"spacing": [-1, '), "spacing is .*expected positive numbers"),
        (lambda text: text.replace('"data_identifier"', '"inherits_from": "nobody", "x"'), "cannot be resolved"),
    ],
)
def test_damaged_plans_are_named(tiny, dataset, change, message):
    file = dataset / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    file.write_text(change(json.dumps(plans, indent=1).replace('"spacing": [\n', '"spacing": [')))
    with pytest.raises(DamagedFileError, match=rf"(?s){message}.*Plan again"):
        open_planned_dataset(tiny.name, tiny.configuration)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_names": None}, "channel_names is None"),
        ({"channel_names": {"first": "CT"}}, "channel_names is {'first': 'CT'}, expected names by number"),
        ({"labels": [0, 1]}, r"labels is \[0, 1\], expected an object"),
        ({"file_ending": None}, "file_ending is None, expected a text"),
    ],
)
def test_damaged_dataset_json_is_named(tiny, dataset, change, message):
    file = dataset / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(DamagedFileError, match=rf"dataset\.json.*: {message}"):
        open_planned_dataset(tiny.name, tiny.configuration)
    file.write_text("{")
    with pytest.raises(DamagedFileError, match=r"dataset\.json is not a valid JSON file"):
        read_dataset_json(file)


def test_sound_plans_are_read(tiny, dataset):
    assert read_plans(dataset / "nnUNetPlans.json").plans == json.loads((dataset / "nnUNetPlans.json").read_text())
