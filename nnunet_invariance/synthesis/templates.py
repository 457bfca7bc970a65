"""Shape templates: the masks from which label maps are painted, and their import from folders of label maps."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import TemplateError

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")


class TemplateBank:
    """Masks of different extents in one flat tensor, so that a batch can read several at once.

    A mask is cropped to its shape and has a border of one empty voxel. The affine map repeats it with a period of its
    extent, at least ``size``; the crop is in the middle of the period.

    >>> bank = TemplateBank([np.ones((3, 4, 5), bool)], size=(32, 32, 32))
    >>> len(bank), tuple(bank.mask(0).shape)
    (1, (3, 4, 5))
    """

    def __init__(self, masks: Iterable[np.ndarray], size: Sequence[int]) -> None:
        flat, extents, offsets, offset = [], [], [], 0
        for mask in masks:
            crop = np.pad(_crop(mask), 1)
            extents.append(crop.shape)
            offsets.append(offset)
            flat.append(crop.astype(np.uint8).ravel())
            offset += crop.size
        self.flat = torch.from_numpy(np.concatenate(flat))
        self.extents = torch.tensor(extents)
        self.offsets = torch.tensor(offsets)
        inside = self.extents - 2
        self.periods = torch.maximum(inside, torch.tensor(list(size)))
        self.fronts = (self.periods - inside + 1) // 2  # the front gets more of an odd remainder

    def __len__(self) -> int:
        return len(self.offsets)

    def to(self, device: torch.device) -> "TemplateBank":
        """Move the masks to a device; the small tables stay on the CPU, where parameters are sampled."""
        self.flat = self.flat.to(device)
        return self

    def mask(self, index: int) -> Tensor:
        """One mask (z, y, x), bool, cropped to its shape."""
        extent = self.extents[index].tolist()
        start = int(self.offsets[index])
        block = self.flat[start : start + int(np.prod(extent))].reshape(extent)
        return block[1:-1, 1:-1, 1:-1].bool()


def _crop(mask: np.ndarray) -> np.ndarray:
    spans = [np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return mask[tuple(slice(span[0], span[-1] + 1) for span in spans)]


def find_label_maps(folder: Path) -> list[Path]:
    """Find the files with one of :data:`ENDINGS` below a folder, sorted.

    Raises:
        TemplateError: the folder does not exist or contains none.
    """
    files = sorted(path for path in folder.rglob("*") if path.name.endswith(ENDINGS) and path.is_file())
    if not files:
        state = "contains no label maps" if folder.is_dir() else "is not a folder"
        msg = (
            f"No templates found: {folder} {state}; expected files ending in {', '.join(ENDINGS)}. Name a folder of "
            "label maps, or leave --templates out to use procedural shapes."
        )
        raise TemplateError(msg)
    return files


def read_templates(folder: Path, size: Sequence[int]) -> TemplateBank:
    """Read a template for every label other than 0 of every label map below ``folder``.

    A map is resampled (nearest) to isotropic voxels, as many along its longest side as along the longest of ``size``.

    Raises:
        TemplateError: no file was found, or one cannot be read, is not 3-D, has non-integer values, or has no label.
    """
    masks = []
    for path in find_label_maps(Path(folder)):
        labels = _resampled(_read(path), max(size))
        found = np.unique(labels)
        found = found[found != 0]
        if not len(found):
            msg = f"{path}: no label other than 0 was found; expected at least one. Remove the file from the templates."
            raise TemplateError(msg)
        masks += [labels == label for label in found]
    return TemplateBank(masks, size)


def _read(path: Path) -> sitk.Image:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        msg = f"{path} could not be read as a label map. Check the file or remove it from the templates."
        raise TemplateError(msg) from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        values = counted(image.GetNumberOfComponentsPerPixel(), "value")
        msg = f"{path}: found {image.GetDimension()} dimensions and {values} per voxel; expected 3 and 1. "
        raise TemplateError(f"{msg}Store one label map per file.")
    array = sitk.GetArrayViewFromImage(image)
    if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        msg = f"{path}: found values that are not integers; expected a label map, not an intensity image."
        raise TemplateError(msg)
    return image


def _resampled(image: sitk.Image, longest: int) -> np.ndarray:
    """The map (z, y, x) with isotropic voxels, ``longest`` of them along its longest side."""
    lengths = np.multiply(image.GetSize(), image.GetSpacing())
    spacing = lengths.max() / longest
    size = np.maximum(1, np.rint(lengths / spacing)).astype(int)
    # The outer corner of the volume stays: the centre of the first voxel moves.
    shift = (spacing - np.array(image.GetSpacing())) / 2
    origin = image.TransformContinuousIndexToPhysicalPoint((shift / image.GetSpacing()).tolist())
    resampled = sitk.Resample(
        image, size.tolist(), sitk.Transform(), sitk.sitkNearestNeighbor, origin, [spacing] * 3,
        image.GetDirection(), 0, image.GetPixelID(),
    )  # fmt: skip
    return sitk.GetArrayFromImage(resampled)
