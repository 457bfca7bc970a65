"""The two images and their masks: reading, checks, and the grid on which features are compared."""

from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from scipy.ndimage import distance_transform_edt

from nnunet_invariance.errors import VolumeError

SMALLEST = 16  # voxels a side: fewer leave nothing to compare after the strides


def read_volume(path: Path) -> sitk.Image:
    """A 3-D image of one value a voxel, float32.

    Raises:
        VolumeError: missing, unreadable, of other dimensions or values a voxel, not finite, or constant.
    """
    image = sitk.Cast(_read(path), sitk.sitkFloat32)
    array = sitk.GetArrayViewFromImage(image)
    # The NIfTI reader behind SimpleITK makes 0 of what is not finite and says nothing, so the file itself is asked.
    stored = np.asanyarray(nibabel.load(path).dataobj) if path.name.endswith((".nii", ".nii.gz")) else array
    bad = int(stored.size - np.isfinite(stored).sum())
    if bad:
        raise VolumeError(f"{path}: found {bad} voxels that are NaN or infinite; expected numbers. Replace them first.")
    if array.min() == array.max():
        raise VolumeError(f"{path}: every voxel is {array.min():g}; expected an image with contrast. Check the file.")
    return image


def read_mask(path: Path, image: sitk.Image) -> sitk.Image:
    """What is above 0 in a mask, uint8, brought to the grid of its image by the nearest voxel.

    Raises:
        VolumeError: unreadable, or nothing of the mask lies in the image.
    """
    found = _read(path) > 0
    mask = sitk.Resample(found, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    if not sitk.GetArrayViewFromImage(mask).any():
        empty = not sitk.GetArrayViewFromImage(found).any()
        what = "no voxel is above 0" if empty else "none of it lies inside of its image"
        raise VolumeError(f"{path}: {what}; expected a region to compare. Correct the mask or leave it out.")
    return mask


def _read(path: Path) -> sitk.Image:
    if not Path(path).is_file():
        raise VolumeError(f"There is no image {path}. Check the spelling of the path.")
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[-1]
        raise VolumeError(f"{path} cannot be read as an image ({reason}). Convert it to NIfTI, NRRD or MHA.") from error
    size = image.GetSize()
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        msg = f"{path}: found {image.GetDimension()} dimensions and {image.GetNumberOfComponentsPerPixel()} value(s) a "
        raise VolumeError(msg + "voxel; expected 3 and 1. Take one volume of one channel.")
    if min(size) < SMALLEST:
        msg = f"{path}: found {size[0]} x {size[1]} x {size[2]} voxels; expected at least {SMALLEST} along each axis. "
        raise VolumeError(msg + "Slices and thin slabs cannot be registered here.")
    return image


def working_grid(fixed: sitk.Image, spacing: float | None = None) -> sitk.Image:
    """An empty image over the extent of ``fixed`` with isotropic voxels of ``spacing`` mm.

    The default spacing is the cube root of the volume of a voxel of ``fixed``: as many voxels as it has.

    Raises:
        VolumeError: with this spacing an axis would have fewer than :data:`SMALLEST` voxels.
    """
    lengths = np.multiply(fixed.GetSize(), fixed.GetSpacing())
    spacing = spacing or float(np.prod(fixed.GetSpacing()) ** (1 / 3))
    size = np.maximum(1, np.rint(lengths / spacing)).astype(int)
    if size.min() < SMALLEST:
        msg = f"A spacing of {spacing:g} mm leaves {' x '.join(map(str, size))} voxels of the fixed image; expected at "
        raise VolumeError(f"{msg}least {SMALLEST} along each axis. Choose a finer --spacing.")
    grid = sitk.Image(size.tolist(), sitk.sitkUInt8)
    grid.SetSpacing([spacing] * 3)
    grid.SetDirection(fixed.GetDirection())
    # Centre on centre: what the rounding of the size adds or takes is shared by both ends.
    middle = fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()])
    reach = np.reshape(fixed.GetDirection(), (3, 3)) @ ((size - 1) / 2 * spacing)
    grid.SetOrigin(np.subtract(middle, reach).tolist())
    return grid


def bring(
    image: sitk.Image, mask: sitk.Image | None, grid: sitk.Image, transform: sitk.Transform
) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask on a grid, (z, y, x) float32 and bool: linear, and by the nearest voxel.

    Where the grid leaves the image or the mask, intensities are those of the nearest voxel inside, so that no edge
    appears that is not anatomy.

    Raises:
        VolumeError: nothing of the image, or of its mask, lies on the grid.
    """
    whole = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
    whole.CopyInformation(image)
    kept = sitk.Resample(whole if mask is None else mask, grid, transform, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    inside = sitk.GetArrayFromImage(kept) > 0
    if not inside.any():
        what = "image" if mask is None else "mask"
        msg = f"No part of the moving {what} lies where the fixed image is, even after the affine alignment. "
        raise VolumeError(f"{msg}Check that both show the same region, and the origins in their headers.")
    x = sitk.GetArrayFromImage(sitk.Resample(image, grid, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32))
    return fill_outside(x, inside), inside


def fill_outside(x: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """``x`` where ``inside``; elsewhere the value of the nearest voxel that is."""
    if inside.all():
        return x
    nearest = distance_transform_edt(~inside, return_distances=False, return_indices=True)
    return x[tuple(nearest)]
