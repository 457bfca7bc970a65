"""`nnunet-invariance complete`, and channels on different grids."""

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_invariance.cli.main import main
from nnunet_invariance.common.json_files import write_json
from nnunet_invariance.errors import DatasetNotFoundError, ImagesFolderError, OutputError, VolumeError
from nnunet_invariance.nnunet.grids import check_same_grid
from nnunet_invariance.nnunet.missing_channels import fill_missing_channels
from tests.helpers import tiny_modalities


@pytest.fixture
def trees(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    folder = tmp_path / "raw" / tiny_modalities.NAME
    folder.mkdir()
    content = {"channel_names": {"0": "T1", "1": "CT"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", content)
    return tmp_path


def image(folder, name, size=(6, 5, 4), spacing=(1.0, 1.0, 2.0), kind=np.int16):
    folder.mkdir(exist_ok=True)
    content = sitk.GetImageFromArray(np.arange(np.prod(size)).reshape(size[::-1]).astype(kind))
    content.SetSpacing(spacing)
    content.SetOrigin((3.0, -4.0, 5.0))
    content.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, 1))
    sitk.WriteImage(content, folder / f"{name}.nii.gz")
    return folder


def test_slots_are_filled_with_the_geometry_of_the_case(trees, capsys):
    folder = image(image(image(trees / "in", "a_0000"), "a_0001"), "b_0001", size=(4, 4, 3))
    assert main(["complete", str(folder), str(trees / "out"), "-d", "779"]) == 0
    assert "b: filled T1" in capsys.readouterr().out
    names = ["a_0000", "a_0001", "b_0000", "b_0001"]
    assert sorted(p.name for p in (trees / "out").iterdir()) == [f"{name}.nii.gz" for name in names]
    for name in ("a_0000", "a_0001", "b_0001"):
        assert (trees / "out" / f"{name}.nii.gz").read_bytes() == (folder / f"{name}.nii.gz").read_bytes()
    zeros, other = (sitk.ReadImage(trees / "out" / f"b_000{i}.nii.gz") for i in range(2))
    assert not sitk.GetArrayFromImage(zeros).any()
    for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection", "GetPixelID"):
        assert getattr(zeros, what)() == getattr(other, what)()


def test_bad_input_is_named_and_nothing_is_written(trees):
    folder, out = trees / "in", trees / "out"
    with pytest.raises(ImagesFolderError, match="does not exist"):
        fill_missing_channels(folder, out, "779")
    folder.mkdir()
    with pytest.raises(ImagesFolderError, match="contains no file named CASE_0000"):
        fill_missing_channels(folder, out, "779")
    image(image(folder, "a_0000"), "b_0002")
    with pytest.raises(ImagesFolderError, match=r"b_0002.nii.gz is channel 2.*T1, CT"):
        fill_missing_channels(folder, out, "779")
    (folder / "b_0002.nii.gz").unlink()
    image(folder, "a_0001", size=(6, 5, 3))
    with pytest.raises(
        ImagesFolderError, match=r"a_0001.nii.gz has the size \(6, 5, 3\).*_0000.nii.gz has \(6, 5, 4\)"
    ):
        fill_missing_channels(folder, out, "779")
    image(folder, "a_0001", spacing=(1.0, 1.0, 2.5))
    with pytest.raises(ImagesFolderError, match="spacing"):
        fill_missing_channels(folder, out, "779")
    (folder / "a_0001.nii.gz").write_bytes(b"no image")
    with pytest.raises(VolumeError, match=r"a_0001.nii.gz cannot be read"):
        fill_missing_channels(folder, out, "779")
    with pytest.raises(DatasetNotFoundError):
        fill_missing_channels(folder, out, "123")
    assert not out.exists()
    image(folder, "a_0001")
    image(out, "old_0000")
    with pytest.raises(OutputError, match="not empty"):
        fill_missing_channels(folder, out, "779")
    assert [p.name for p in out.iterdir()] == ["old_0000.nii.gz"]


def test_rounding_is_no_other_grid(trees):
    folder = image(image(trees / "in", "a_0000"), "a_0001", spacing=(1.0, 1.00001, 2.0))
    check_same_grid(sorted(folder.iterdir()))
