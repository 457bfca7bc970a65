"""Check that the images of a case are undamaged and share one grid."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_invariance.common.image_files import check_image
from nnunet_invariance.errors import ImagesFolderError
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, training_images

READ_BY_SIMPLEITK = ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient")
TOLERANCE = 1e-3  # absolute; mm for spacing and origin


def grid_of(file: Path) -> dict[str, tuple[float, ...]]:
    """Read size (voxels), spacing and origin (mm) and direction from the header of an image.

    Raises:
        ImagesFolderError: SimpleITK cannot read the file.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        msg = f"{file} cannot be read as an image ({str(error).strip().splitlines()[-1]}). Replace it or remove it."
        raise ImagesFolderError(msg) from error
    names = {"size": "Size", "spacing": "Spacing", "origin": "Origin", "direction": "Direction"}
    return {name: tuple(getattr(reader, f"Get{kind}")()) for name, kind in names.items()}


def check_same_grid(files: Sequence[Path]) -> None:
    """Check that all channels of a case have the same size, spacing, origin and direction.

    Raises:
        ImagesFolderError: two files differ; the message names the files and the property.
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


def check_case(files: Sequence[Path], finite: bool = True) -> None:
    """Check that the images of a case are undamaged and share one grid.

    Args:
        files: the channels.
        finite: whether NaN and infinite voxels count as damage.

    Raises:
        VolumeError: an image is damaged.
        ImagesFolderError: two images differ in size, spacing, origin or direction.
    """
    for file in files:
        check_image(file, finite=finite)
    check_same_grid(files)


def check_training_grids(dataset: PlannedDataset) -> None:
    """Check that the channels of each raw training case share one grid; nnU-Net itself only warns if they do not.

    Raises:
        ImagesFolderError: see :func:`check_same_grid`.
    """
    for files in readable_training_images(dataset).values():
        check_same_grid(files)


def readable_training_images(dataset: PlannedDataset) -> dict[str, list[Path]]:
    """As :func:`.training_images`; none if the plans name a reader of images without geometry, such as PNG."""
    readable = dataset.plans.image_reader_writer_class.__name__ in READ_BY_SIMPLEITK
    return training_images(dataset) if readable else {}
