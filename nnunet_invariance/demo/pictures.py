"""Pictures of a demo: training cases, predictions, training curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_invariance.demo.data import ENDING, LABELS
from nnunet_invariance.evaluation.protocols.cases import LabelledCase
from nnunet_invariance.evaluation.report.pictures import STYLE, panels, png, show
from nnunet_invariance.weights.foreign import open_foreign


def draw_cases(raw: Path) -> bytes:
    """Draw up to six training cases with the outlines of their labels, as PNG."""
    labels = sorted((raw / "labelsTr").glob(f"*{ENDING}"))[:6]
    figure, axes = panels(1, len(labels))
    for axis, path in zip(axes[0], labels, strict=True):
        name = path.name[: -len(ENDING)]
        segmentation = read(path)
        index = best_slice(segmentation)
        show(axis, read(raw / "imagesTr" / f"{name}_0000{ENDING}")[index], segmentation[index], name)
    return png(figure)


def draw_predictions(cases: Sequence[LabelledCase], folders: Mapping[str, Path]) -> bytes:
    """Draw one row per test case, as PNG: image, outlines of the reference, and outlines of each arm's prediction."""
    figure, axes = panels(len(cases), 2 + len(folders))
    for row, case in zip(axes, cases, strict=True):
        image, reference = read(case.images[0]), read(case.label)
        index = best_slice(reference)
        show(row[0], image[index], np.zeros_like(reference[index]), case.name)
        show(row[1], image[index], reference[index], "reference")
        for axis, (arm, folder) in zip(row[2:], folders.items(), strict=True):
            show(axis, image[index], read(folder / f"{case.name}{ENDING}")[index], arm)
    return png(figure)


def draw_training(folders: Mapping[str, Path]) -> bytes:
    """Draw training loss and nnU-Net's validation Dice of every arm over the epochs, as PNG; the last arm is dashed."""
    curves = {"train_losses": "segmentation loss, training", "mean_fg_dice": "validation Dice (nnU-Net's estimate)"}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.8), layout="constrained")
        FigureCanvasAgg(figure)
        for number, (key, title) in enumerate(curves.items(), 1):
            axis = figure.add_subplot(1, len(curves), number)
            for left, (arm, folder) in zip(range(len(folders) - 1, -1, -1), folders.items(), strict=True):
                log = open_foreign(folder / "checkpoint_final.pth")["logging"]
                style = "-" if left else "--"
                axis.plot(range(1, len(log[key]) + 1), log[key], style, marker=".", label=arm)
            axis.set_title(title, loc="left", fontsize=10)
            axis.set_xlabel("epoch")
            axis.grid(alpha=0.25)
        figure.axes[0].legend(loc="upper right")
    return png(figure)


def best_slice(segmentation: np.ndarray) -> int:
    """Index of the slice with the most voxels of the last class."""
    return int((segmentation == max(LABELS.values())).sum(axis=(1, 2)).argmax())


def read(path: Path) -> np.ndarray:
    """Read the voxels of a file (slices, height, width)."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
