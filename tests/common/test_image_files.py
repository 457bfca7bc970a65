"""Image files: damage is found, sound files of several formats pass, geometry is written."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_invariance.common.image_files import check_image, read_image, write_image, write_like
from nnunet_invariance.errors import OutputError, VolumeError
from tests.helpers.damaged_images import damaged_images


def test_every_damage_is_named(tmp_path):
    found = []
    for damage, message in damaged_images(tmp_path / "scan.nii.gz"):
        with pytest.raises(VolumeError, match=rf"scan\.nii\.gz .*{message}"):
            check_image(tmp_path / "scan.nii.gz", dimensions=3)
        found.append(damage)
    assert len(found) == 18
    with pytest.raises(VolumeError, match="There is no image"):
        check_image(tmp_path / "none.nii.gz")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_sound_images_pass(tmp_path, ending, kind):
    array = np.arange(60, dtype=kind).reshape(3, 4, 5)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.8, 3.0))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    write_image(tmp_path / f"a{ending}", image)
    check_image(tmp_path / f"a{ending}", dimensions=3)
    check_image(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(tmp_path / f"a{ending}")), array)


def test_scaled_integers_and_a_fourth_axis_of_length_one_pass(tmp_path):
    image = nibabel.Nifti1Image(np.ones((5, 6, 7, 1), np.int16), np.eye(4))
    image.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(image, tmp_path / "a.nii.gz")
    check_image(tmp_path / "a.nii.gz", dimensions=3)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_damage_of_other_formats_is_named(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    array = np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32)
    array[1, 2, 3] = np.inf
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    with pytest.raises(VolumeError, match="1 voxels that are NaN or infinite"):
        check_image(path)
    array[1, 2, 3] = 0
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(VolumeError, match="cannot be read as an image"):
        check_image(path)


def test_an_image_has_the_geometry_of_its_reference(tmp_path):
    reference = sitk.Image([4, 3, 2], sitk.sitkInt16)
    reference.SetSpacing((0.5, 0.6, 3.0))
    reference.SetOrigin((1, -2, 30))
    reference.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    array = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    write_like(tmp_path / "a.nii.gz", array, reference)
    found = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), array)
    for name in ("Spacing", "Origin", "Direction", "Size"):
        np.testing.assert_allclose(getattr(found, f"Get{name}")(), getattr(reference, f"Get{name}")(), atol=1e-6)


def test_a_write_that_fails_is_an_output_error_and_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match=r"a\.unknown could not be written: SimpleITK reports"):
        write_image(tmp_path / "a.unknown", sitk.Image([2, 2, 2], sitk.sitkUInt8))
    assert list(tmp_path.iterdir()) == []
