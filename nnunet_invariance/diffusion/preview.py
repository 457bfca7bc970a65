"""Preview image of source slices, their labels and their views."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_invariance.common.atomic import atomic_write_path
from nnunet_invariance.diffusion.slices import open_slices
from nnunet_invariance.diffusion.views import FOLDER, RECORD
from nnunet_invariance.diffusion.volumes import open_raw_dataset, read_case, to_unit
from nnunet_invariance.errors import StyleFolderError


def write_preview(root: Path, n: int = 4) -> Path:
    """Write ``root/preview.png``: one row per volume, the slice with the most foreground.

    Raises:
        StyleFolderError: there are no views.
        OutputError: the file cannot be written.
    """
    slices = open_slices(root)
    raw = open_raw_dataset(slices.dataset)
    views = sorted(path.parent for path in (root / FOLDER).glob(f"*/{RECORD}"))
    if not views:
        raise StyleFolderError(f"{root / FOLDER} contains no views. Run first: nnunet-invariance style generate {root}")
    names = slices.names[:n]
    columns = ["source", "labels", *(view.name for view in views)]
    figure = Figure(figsize=(2 * len(columns), 2.1 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(names), len(columns), squeeze=False)
    for name, row in zip(names, axes, strict=True):
        case = slices.case(name)
        _, source, labels = read_case(*raw.cases[name], raw.classes)
        others = tuple(axis for axis in range(3) if axis != case.axis)
        z = int((labels > 0).sum(others).argmax())
        files = [view / f"{name}{raw.ending}" for view in views]
        volumes = [sitk.GetArrayFromImage(sitk.ReadImage(str(f))) if f.is_file() else None for f in files]
        for cell, volume in zip(row, (source, labels, *volumes), strict=True):
            cell.set(xticks=[], yticks=[])
            if volume is None:
                cell.text(0.5, 0.5, "left out", ha="center", va="center", transform=cell.transAxes)
                continue
            plane = np.take(volume, z, case.axis)
            shown = (
                {"cmap": "tab20", "vmin": 0, "vmax": 19} if volume is labels else {"cmap": "gray", "vmin": 0, "vmax": 1}
            )
            cell.imshow(plane if volume is labels else to_unit(plane, case.window), interpolation="nearest", **shown)
        row[0].set_ylabel(name)
    for cell, title in zip(axes[0], columns, strict=True):
        cell.set_title(title)
    path = root / "preview.png"
    atomic_write_path(path, lambda temporary: figure.savefig(temporary, dpi=100))
    return path
