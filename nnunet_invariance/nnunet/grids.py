"""Checks of the images of a case: they are sound and lie on one grid."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_invariance.common.image_files import check_image
from nnunet_invariance.errors import ImagesFolderError
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, training_images

READ_BY_SIMPLEITK = ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient")
TOLERANCE = 1e-3  # mm, and of direction cosines


def grid_of(file: Path) -> dict[str, tuple[float, ...]]:
    """Size (voxels), spacing and origin (mm) and direction of an image; reads the header only.

    Raises:
        ImagesFolderError: SimpleITK cannot read the file.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        msg = f"{file} cannot be read as an image ({str(error).strip().splitlines()[-1]}). Replace it or leave it away."
        raise ImagesFolderError(msg) from error
    names = {"size": "Size", "spacing": "Spacing", "origin": "Origin", "direction": "Direction"}
    return {name: tuple(getattr(reader, f"Get{kind}")()) for name, kind in names.items()}


def check_same_grid(files: Sequence[Path]) -> None:
    """Refuse channels of one case that differ in size, spacing, origin or direction.

    Raises:
        ImagesFolderError: names the two files and what differs.
    """
    first = grid_of(files[0])
    for file in files[1:]:
        for name, found in grid_of(file).items():
            wanted = first[name]
            if len(found) != len(wanted) or not np.allclose(found, wanted, rtol=0, atol=TOLERANCE):
                raise ImagesFolderError(
                    f"{file} has the {name} {found}, but {files[0]} has {wanted}. Channels of a case must be "
                    "co-registered on one grid: resample one onto the other."
                )


def check_case(files: Sequence[Path]) -> None:
    """Refuse a case whose images are damaged or lie on different grids.

    Raises:
        VolumeError: an image is damaged.
        ImagesFolderError: two images differ in size, spacing, origin or direction.
    """
    for file in files:
        check_image(file)
    check_same_grid(files)


def check_training_grids(dataset: PlannedDataset) -> None:
    """Refuse a raw training case whose channels differ: nnU-Net warns and preprocesses it; see `check_same_grid`."""
    if dataset.plans.image_reader_writer_class.__name__ in READ_BY_SIMPLEITK:
        for files in training_images(dataset).values():
            check_same_grid(files)
