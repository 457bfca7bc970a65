"""Projections of volumes along an axis: a labelled data set of images such as radiographs."""

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_invariance.common.image_files import write_image
from nnunet_invariance.common.json_files import write_json
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.diffusion.volumes import open_raw_dataset, read_case, slice_axis
from nnunet_invariance.errors import OptionError
from nnunet_invariance.synthesis.files import dataset_layout

PROJECTIONS = ("mean", "attenuation")
WATER = 0.02  # attenuation of water at about 70 keV, 1/mm
FLAT = 999.0  # mm; spacing of the missing axis of a 2-D image in nnU-Net's own readers


def project_image(volume: np.ndarray, axis: int, kind: str, spacing: float) -> np.ndarray:
    r"""Mean along an axis, or the absorbed share of X-rays.

    Attenuation of a CT in Hounsfield units h, with steps of dx mm and water's :math:`\mu_w`:

    .. math:: 1 - \exp\big(-\sum \mu_w \max(0, 1 + h / 1000)\, dx\big)

    Shape: (z, y, x) to the two remaining axes.
    """
    if kind == "mean":
        return volume.mean(axis)
    path = (WATER * np.clip(1 + volume / 1000, 0, None)).sum(axis) * spacing
    return 1 - np.exp(-path)


def project_labels(labels: np.ndarray, axis: int, classes: int) -> np.ndarray:
    """The foreground label with the longest path along each ray; the smallest of equals. uint8."""
    thickness = np.stack([(labels == label).sum(axis) for label in range(1, classes)])
    return np.where(thickness.any(0), thickness.argmax(0) + 1, 0).astype(np.uint8)


def project_dataset(dataset: str, new_id: int, kind: str, plane: str | None = None) -> str:
    """Write the projections of all training cases as a data set of volumes with one slice; returns its name.

    Args:
        dataset: name or id of the volumes.
        new_id: 1 to 999.
        kind: "mean" or "attenuation", the latter for CT.
        plane: of the images; default: "coronal", like a frontal radiograph.

    Raises:
        OptionError: the id is in use, or the data set is not CT.
        OutputError: a file cannot be written.
        StyleFolderError, EnvironmentNotSetError, DatasetNotFoundError: see ``open_raw_dataset``.
    """
    raw = open_raw_dataset(dataset)
    channel = next(iter((raw.json.get("channel_names") or raw.json["modality"]).values()))
    if kind == "attenuation" and channel.lower() != "ct":
        msg = f"--project attenuation needs Hounsfield units, but the channel of {raw.name} is {channel!r}. "
        raise OptionError(f"{msg}Use --project mean.")
    plain = re.sub(r"\W", "_", raw.name.split("_", 1)[1])
    root = dataset_layout(f"{plain}_{kind}", new_id).root
    for name, (image_file, label_file) in Progress(raw.cases.items(), desc="projections", unit="case"):
        targets = (root / f"imagesTr/{name}_0000{raw.ending}", root / f"labelsTr/{name}{raw.ending}")
        if all(target.is_file() for target in targets):
            continue
        image, array, labels = read_case(image_file, label_file, raw.classes)
        axis = slice_axis(image, plane or "coronal")
        spacing = image.GetSpacing()[::-1]
        pictures = (
            project_image(array, axis, kind, spacing[axis]).astype(np.float32),
            project_labels(labels, axis, raw.classes),
        )
        for target, picture in zip(targets, pictures, strict=True):
            _write_picture(target, picture, np.delete(spacing, axis))
    known = ("labels", "file_ending", "regions_class_order")
    content = {key: raw.json[key] for key in known if key in raw.json}
    content.update(channel_names={"0": f"{kind} projection"}, numTraining=len(raw.cases))
    write_json(root / "dataset.json", content)
    return root.name


def _write_picture(path: Path, picture: np.ndarray, spacing: np.ndarray) -> None:
    made = sitk.GetImageFromArray(picture[None])
    made.SetSpacing((float(spacing[1]), float(spacing[0]), FLAT))
    write_image(path, made)
