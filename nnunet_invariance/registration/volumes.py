"""Images and masks of a registration: reading, checks, and resampling to the working grid."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import distance_transform_edt

from nnunet_invariance.common.image_files import check_image, read_image
from nnunet_invariance.errors import VolumeError

__all__ = ["fill_outside", "read_mask", "read_volume", "resample_to_grid", "working_grid"]

SMALLEST = 16  # minimum number of voxels along each axis; fewer are too few after striding


def read_volume(path: Path) -> sitk.Image:
    """Read a 3-D image with one value per voxel, as float32.

    Raises:
        VolumeError: the file is missing, unreadable or truncated, or the image is not 3-D, too small, constant, not
            finite, or its spacing is not positive.
    """
    image = sitk.Cast(_read(path), sitk.sitkFloat32)
    array = sitk.GetArrayViewFromImage(image)
    if array.min() == array.max():
        raise VolumeError(f"{path}: every voxel is {array.min():g}; expected an image with contrast. Check the file.")
    return image


def read_mask(path: Path, image: sitk.Image) -> sitk.Image:
    """Read a mask (voxels above 0) as uint8, resampled to the grid of its image with nearest-neighbour interpolation.

    Raises:
        VolumeError: the file is unreadable, or no voxel of the mask lies inside the image.
    """
    found = _read(path) > 0
    mask = sitk.Resample(found, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    if not sitk.GetArrayViewFromImage(mask).any():
        empty = not sitk.GetArrayViewFromImage(found).any()
        what = "no voxel is above 0" if empty else "none of it lies inside of its image"
        raise VolumeError(f"{path}: {what}; expected a region to compare. Correct the mask or leave it out.")
    return mask


def _read(path: Path) -> sitk.Image:
    image = read_image(path)
    size = image.GetSize()
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        msg = f"{path}: found {image.GetDimension()} dimensions and {image.GetNumberOfComponentsPerPixel()} values per "
        raise VolumeError(msg + "voxel; expected 3 and 1. Use one volume of one channel.")
    if min(size) < SMALLEST:
        msg = f"{path}: found {size[0]} x {size[1]} x {size[2]} voxels; expected at least {SMALLEST} along each axis. "
        raise VolumeError(msg + "Slices and thin slabs cannot be registered.")
    check_image(path)
    return image


def working_grid(fixed: sitk.Image, spacing: float | None = None) -> sitk.Image:
    """Create an empty image with the extent of ``fixed`` and isotropic voxels of ``spacing`` mm.

    The default spacing is the cube root of the voxel volume of ``fixed``, which keeps the number of voxels.

    Raises:
        VolumeError: an axis would have fewer than :data:`SMALLEST` voxels.
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
    # Align the centres, so that the rounding of the size affects both ends equally.
    middle = fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()])
    reach = np.reshape(fixed.GetDirection(), (3, 3)) @ ((size - 1) / 2 * spacing)
    grid.SetOrigin(np.subtract(middle, reach).tolist())
    return grid


def resample_to_grid(
    image: sitk.Image, mask: sitk.Image | None, grid: sitk.Image, transform: sitk.Transform
) -> tuple[np.ndarray, np.ndarray]:
    """Resample an image (linear) and its mask (nearest neighbour) to arrays (z, y, x) of float32 and bool.

    Voxels outside the image or the mask get the intensity of the nearest voxel inside, to avoid artificial edges.

    Raises:
        VolumeError: no voxel of the image, or of its mask, lies on the grid.
    """
    whole = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
    whole.CopyInformation(image)
    kept = sitk.Resample(whole if mask is None else mask, grid, transform, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    valid_mask = sitk.GetArrayFromImage(kept) > 0
    if not valid_mask.any():
        what = "image" if mask is None else "mask"
        msg = f"No part of the moving {what} overlaps the fixed image, even after the affine alignment. "
        raise VolumeError(f"{msg}Check that both show the same region, and the origins in their headers.")
    x = sitk.GetArrayFromImage(sitk.Resample(image, grid, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32))
    return fill_outside(x, valid_mask), valid_mask


def fill_outside(x: np.ndarray, valid_mask: np.ndarray) -> np.ndarray:
    """Replace each voxel outside a mask by the nearest voxel inside.

    >>> fill_outside(np.array([1.0, 2.0, 9.0]), np.array([True, True, False])).tolist()
    [1.0, 2.0, 2.0]
    """
    if valid_mask.all():
        return x
    nearest = distance_transform_edt(~valid_mask, return_distances=False, return_indices=True)
    return x[tuple(nearest)]
