"""Square 8-bit slices of labelled volumes, with the information that converts them back to volumes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.json_files import claim_folder, read_json, write_json
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.common.wording import counted
from nnunet_invariance.diffusion.geometry import Geometry
from nnunet_invariance.diffusion.volumes import (
    RawDataset,
    open_raw_dataset,
    read_case,
    slice_axis,
    to_unit,
    window_of,
)
from nnunet_invariance.errors import OptionError, StyleFolderError

RECORD = "slices.json"
FOLDER = "slices"


@dataclass(frozen=True)
class SlicedCase:
    """Slices of one volume.

    Attributes:
        axis: array axis (z, y, x) to which the slices are normal.
        window: intensities that are mapped to 0 and 255.
        image, labels: (D, R, R) uint8, memory-mapped.
    """

    name: str
    axis: int
    window: tuple[float, float]
    geometry: Geometry
    image: np.ndarray
    labels: np.ndarray


#: Form of the files of a case and of the folder.
SLICES_FORM = {"axis": int, "window": [float], "shape": [int], "scaled": [int]}
FOLDER_FORM = {"dataset": str, "size": int, "classes": int, "cases": [str]}


@dataclass(frozen=True)
class SliceFolder:
    """A folder that :func:`make_slices` has filled."""

    root: Path
    dataset: str
    size: int
    classes: int
    names: tuple[str, ...]

    def case(self, name: str) -> SlicedCase:
        """The slices of one volume.

        Raises:
            StyleFolderError: the arrays cannot be read. DamagedFileError: the JSON file beside them cannot.
        """
        base = self.root / FOLDER / name
        record = read_json(Path(f"{base}.json"), form=SLICES_FORM)
        (height, width), (rows, columns) = record["shape"], record["scaled"]
        geometry = Geometry((height, width), (rows, columns), self.size)
        try:
            image, labels = (np.load(f"{base}_{part}.npy", mmap_mode="r") for part in ("image", "labels"))
        except (OSError, ValueError, EOFError) as error:
            msg = f"{base}_image.npy or {name}_labels.npy cannot be read ({error}). Delete both and run "
            raise StyleFolderError(f"{msg}`nnunet-invariance style slices {self.dataset} {self.root}`.") from error
        return SlicedCase(name, record["axis"], tuple(record["window"]), geometry, image, labels)


def open_slices(root: Path) -> SliceFolder:
    """Open a folder that ``style slices`` has filled.

    Raises:
        StyleFolderError: there are no slices, or those of some cases are missing.
    """
    record = root / RECORD
    if not record.is_file():
        msg = f"{root} contains no {RECORD}. "
        raise StyleFolderError(f"{msg}Make the slices first: nnunet-invariance style slices DATASET {root}")
    content = read_json(record, form=FOLDER_FORM)
    parts = ("{}_image.npy", "{}_labels.npy", "{}.json")
    missing = [
        part.format(name)
        for name in content["cases"]
        for part in parts
        if not (root / FOLDER / part.format(name)).is_file()
    ]
    if missing:
        msg = f"{root / FOLDER} lacks {counted(len(missing), 'file')}: {', '.join(missing[:4])}. "
        raise StyleFolderError(f"{msg}Run again: nnunet-invariance style slices {content['dataset']} {root}")
    return SliceFolder(root, content["dataset"], content["size"], content["classes"], tuple(content["cases"]))


def make_slices(
    dataset: str, root: Path, size: int = 512, plane: str | None = None, window: Sequence[float] | None = None
) -> SliceFolder:
    """Cut all training cases of a raw data set into squares; existing slices are kept.

    Args:
        dataset: name or id.
        size: R, pixels; a multiple of 64 for models of the size of Stable Diffusion.
        plane: "axial", "coronal" or "sagittal"; default: normal to the coarsest axis.
        window: low and high intensity, for example (-125, 275) for an abdominal CT; default: the 1st and 99th
            percentile of each volume.

    Raises:
        OptionError: size or window are out of range.
        StyleFolderError: labels are missing or do not fit.
        OutputError: the folder contains slices with other settings, or cannot be written.
        EnvironmentNotSetError, DatasetNotFoundError
    """
    if size < 8 or size % 8:
        raise OptionError(f"--size is {size}; expected a multiple of 8, for Stable Diffusion of 64. Use 512.")
    if window is not None and not window[0] < window[1]:
        raise OptionError(f"--window is {window[0]:g} {window[1]:g}; expected LOW HIGH with LOW below HIGH.")
    raw = open_raw_dataset(dataset)
    settings = {"size": size, "plane": plane, "window": None if window is None else [float(v) for v in window]}
    record = {"format": 1, "dataset": raw.name, "classes": raw.classes, "cases": list(raw.cases), **settings}
    claim_folder(root / RECORD, record, "these slices")
    for name in Progress(raw.cases, desc="slices", unit="case"):
        if not (root / FOLDER / f"{name}.json").is_file():
            _cut(root / FOLDER / name, raw, name, settings)
    return open_slices(root)


def _cut(base: Path, raw: RawDataset, name: str, settings: dict[str, Any]) -> None:
    image, array, labels = read_case(*raw.cases[name], raw.classes)
    axis = slice_axis(image, settings["plane"])
    spacing = np.delete(image.GetSpacing()[::-1], axis)
    window = window_of(array, settings["window"])
    geometry = Geometry.fit(np.delete(array.shape, axis).tolist(), spacing.tolist(), settings["size"])
    stack = torch.from_numpy(np.moveaxis(to_unit(array, window), axis, 0).copy())
    masks = torch.from_numpy(np.moveaxis(labels, axis, 0).copy())
    made = {
        "image": (geometry.to_square(stack) * 255).round().to(torch.uint8),
        "labels": geometry.to_square(masks, labels=True),
    }
    for part, squares in made.items():
        atomic_write(f"{base}_{part}.npy", partial(np.save, arr=squares.numpy()))
    record = {"axis": axis, "window": window, "shape": geometry.shape, "scaled": geometry.scaled}
    write_json(Path(f"{base}.json"), record, indent=None)  # last: the case is complete


def batches(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of ``range(count)``, ``size`` at a time."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def unit_images(squares: np.ndarray) -> Tensor:
    """uint8 (B, R, R) to float32 in [0, 1]."""
    return torch.from_numpy(np.array(squares)).float() / 255
