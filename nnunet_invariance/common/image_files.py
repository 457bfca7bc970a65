"""Image files: reading with named errors, checks for damage, and atomic writing with a given geometry.

SimpleITK's NIfTI reader replaces NaN by 0, fills the end of a truncated file with zeros, and replaces a negative
spacing by its absolute value and a spacing of 0 by 1, all without a message. :func:`check_image` therefore checks the
content of the file itself.
"""

import gzip
import math
import zlib
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from nnunet_invariance.common.atomic import atomic_write_path
from nnunet_invariance.errors import VolumeError

__all__ = ["check_image", "read_image", "write_image", "write_like"]

_NIFTI = (".nii", ".nii.gz")
_SMALLEST_VOLUME = 1e-12  # voxel volume in mm^3
_REMEDY = "Replace the file or leave it out."
_READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    WrapStructError,
)


def read_image(path: Path) -> sitk.Image:
    """Read an image with SimpleITK.

    Raises:
        VolumeError: there is no such file, or SimpleITK cannot read it.
    """
    if not path.is_file():
        raise VolumeError(f"There is no image {path}. Check the spelling of the path.")
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise VolumeError(f"{path} cannot be read as an image ({_last_line(error)}). {_REMEDY}") from error


def check_image(path: Path, dimensions: int | None = None, finite: bool = True) -> None:
    """Check an image file for damage, also for damage that SimpleITK does not report.

    Args:
        path: image file.
        dimensions: expected number of spatial axes; default: any number.
        finite: whether NaN and infinite voxels count as damage; a reader that accepts them says False.

    Raises:
        VolumeError: the file is missing, unreadable or truncated, has another number of axes, colours or complex
            numbers as voxels, NaN or infinite voxels, or a spacing that is not positive.
    """
    if not path.is_file():
        raise VolumeError(f"There is no image {path}. Check the spelling of the path.")
    if path.name.endswith(_NIFTI):
        spacing, shape, voxels = _read_nifti(path)
    else:
        image = read_image(path)
        voxels = sitk.GetArrayViewFromImage(image)
        spacing, shape = np.array(image.GetSpacing()), image.GetSize()
    if dimensions is not None and len(shape) != dimensions:
        raise VolumeError(f"{path} has {len(shape)} axes {tuple(shape)}, expected {dimensions}. {_REMEDY}")
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        found = " x ".join(f"{s:g}" for s in spacing)
        raise VolumeError(f"{path} has the spacing {found} mm, expected numbers above 0. Correct the header.")
    if voxels.dtype.kind not in "biuf":
        kind = " ".join(voxels.dtype.names or [str(voxels.dtype)])
        raise VolumeError(f"{path} has voxels of the type {kind!r}, expected one real number each. {_REMEDY}")
    if finite and (bad := int(voxels.size - np.isfinite(voxels).sum())):
        msg = f"{path} contains {bad} voxels that are NaN or infinite, expected finite intensities. Replace them first."
        raise VolumeError(msg)


def _read_nifti(path: Path) -> tuple[np.ndarray, tuple[int, ...], np.ndarray]:
    """Spacing as written in the header, shape without trailing axes of length 1, and voxels as stored."""
    try:
        # Decompress the whole stream: nibabel stops before the checksum at its end.
        content = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
        two = content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # NIfTI-2: the header size is 540 bytes
        kind = nibabel.Nifti2Image if two else nibabel.Nifti1Image
        image = kind.from_bytes(content)
        voxels = _stored(image, len(content))
        header = kind.header_class(content[: image.header.sizeof_hdr], check=False)  # nibabel corrects image.header
    except _READ_ERRORS as error:
        raise VolumeError(f"{path} cannot be read as an image ({_last_line(error)}). {_REMEDY}") from error
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine)) < _SMALLEST_VOLUME:
        raise VolumeError(f"{path} has an affine matrix that is singular or not finite. Correct the header.")
    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return np.asarray(header["pixdim"][1 : 1 + len(shape)], float), shape, voxels


def _stored(image: nibabel.Nifti1Image, size: int) -> np.ndarray:
    """Voxels as stored, without slope and intercept, of a file of ``size`` bytes."""
    proxy = image.dataobj
    if not isinstance(proxy, ArrayProxy):
        return np.asanyarray(proxy)
    needed = proxy.offset + math.prod(proxy.shape) * proxy.dtype.itemsize
    if needed > size:  # nibabel would allocate the array before it reads the file
        raise ValueError(f"its header describes {needed:,} bytes, it has {size:,}")
    return np.asanyarray(proxy.get_unscaled())


def write_image(path: Path, image: sitk.Image) -> None:
    """Write an image, compressed and atomically.

    Raises:
        OutputError: the file could not be written.
    """

    def write(temporary: Path) -> None:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:  # SimpleITK raises it for all errors, including a full disk
            raise OSError(f"SimpleITK reports: {_last_line(error)}") from error

    atomic_write_path(path, write)


def write_like(path: Path, array: np.ndarray, reference: sitk.Image) -> None:
    """Write an array (slices, rows, columns) with spacing, origin and direction of ``reference``.

    >>> import tempfile
    >>> reference = sitk.Image([4, 3, 2], sitk.sitkUInt8)
    >>> reference.SetSpacing([0.5, 0.5, 3.0])
    >>> path = Path(tempfile.mkdtemp()) / "a.nii.gz"
    >>> write_like(path, np.ones((2, 3, 4), np.float32), reference)
    >>> read_image(path).GetSpacing()
    (0.5, 0.5, 3.0)

    Raises:
        OutputError: the file could not be written.
    """
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(reference)
    write_image(path, image)


def _last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
