"""Damaged image files that SimpleITK reads without an error, or only with an unclear one."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np

#: Bytes of two float32 in a NIfTI-1 header: pixdim[3] and vox_offset.
LAST_SPACING, VOXEL_OFFSET = 88, 108


def damaged_images(path: Path, shape: tuple[int, int, int] = (20, 21, 22), seed: int = 0) -> Iterator[tuple[str, str]]:
    """Write damaged NIfTI files, one after the other, to ``path`` (.nii.gz); yields the damage and its message."""
    voxels = np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)
    image = nibabel.Nifti1Image(voxels, np.eye(4))
    nibabel.save(image, path)
    whole = path.read_bytes()
    content = gzip.decompress(whole)
    path.write_bytes(b"")
    yield "empty file", "cannot be read as an image"
    path.write_text("no image")
    yield "text", "cannot be read as an image"
    path.write_bytes(whole[: len(whole) // 2])
    yield "truncated gzip stream", "cannot be read as an image"
    path.write_bytes(gzip.compress(content[: len(content) // 2]))
    yield "truncated inside of a valid gzip stream", "cannot be read as an image"
    path.write_bytes(whole[:-200] + bytes(100) + whole[-100:])
    yield "zeroed bytes in the gzip stream", "cannot be read as an image"
    for value, name in ((np.nan, "NaN"), (np.inf, "infinity")):
        broken = voxels.copy()
        broken[3, 4, 5] = value
        nibabel.save(nibabel.Nifti1Image(broken, np.eye(4)), path)
        yield f"one voxel is {name}", "1 voxels that are NaN or infinite"
    broken = voxels.copy()
    broken[: shape[0] // 2] = np.nan
    nibabel.save(nibabel.Nifti1Image(broken, np.eye(4)), path)
    yield "half of the voxels are NaN", "voxels that are NaN or infinite"
    for spacing in (0.0, np.nan, -1.0):
        path.write_bytes(gzip.compress(_with_number(content, LAST_SPACING, spacing)))
        yield f"spacing {spacing}", f"has the spacing 1 x 1 x {spacing:g} mm, expected numbers above 0"
    large = bytearray(content)
    large[42:48] = np.int16([30000, 30000, 30000]).tobytes()  # dim[1:4]
    path.write_bytes(gzip.compress(large))
    yield "a size far beyond the file", "its header describes 108,000,000,000,352 bytes, it has"
    for offset in (np.inf, 1e30):
        path.write_bytes(gzip.compress(_with_number(content, VOXEL_OFFSET, offset)))
        yield f"voxels at byte {offset:g}", "cannot be read as an image"
    colours = np.zeros(shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), path)
    yield "colours", "has voxels of the type 'R G B', expected one real number each"
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.complex64), np.eye(4)), path)
    yield "complex numbers", "has voxels of the type 'complex64', expected one real number each"
    nibabel.save(nibabel.Nifti1Image(voxels[..., 0], np.eye(4)), path)
    yield "two axes", r"has 2 axes \(20, 21\), expected 3"
    nibabel.save(nibabel.Nifti1Image(np.stack([voxels] * 2, -1), np.eye(4)), path)
    yield "four axes", r"has 4 axes \(20, 21, 22, 2\), expected 3"


def _with_number(content: bytes, place: int, number: float) -> bytes:
    header = bytearray(content)
    header[place : place + 4] = np.float32(number).tobytes()
    return bytes(header)
