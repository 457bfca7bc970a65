"""Pictures of a demo: training cases, predictions, training curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_invariance.common.pictures import STYLE, add_legend, best_slice, class_colours, panels, png, show
from nnunet_invariance.demo.data import ENDING, LABELS
from nnunet_invariance.evaluation.protocols.cases import LabelledCase
from nnunet_invariance.weights.foreign import open_foreign


def draw_cases(raw: Path) -> bytes:
    """Draw up to six training cases with the outlines of their labels, three in a row, as PNG."""
    labels = sorted((raw / "labelsTr").glob(f"*{ENDING}"))[:6]
    figure, axes = panels(-(-len(labels) // 3), min(len(labels), 3))
    for axis in axes.flat[len(labels) :]:
        axis.set_axis_off()
    for axis, path in zip(axes.flat, labels, strict=False):
        name = path.name[: -len(ENDING)]
        segmentation = read(path)
        index = best_slice(segmentation)
        show(axis, read(raw / "imagesTr" / f"{name}_0000{ENDING}")[index], segmentation[index], name)
    add_legend(figure, class_colours(LABELS))
    return png(figure)


def draw_predictions(cases: Sequence[LabelledCase], folders: Mapping[str, Path]) -> bytes:
    """Draw one row per test case, as PNG: image, outlines of the reference, and outlines of each arm's prediction."""
    figure, axes = panels(len(cases), 2 + len(folders))
    for row, case in zip(axes, cases, strict=True):
        image, reference = read(case.images[0]), read(case.label)
        index = best_slice(reference)
        show(row[0], image[index], None, case.name)
        show(row[1], image[index], reference[index], "reference")
        for axis, (arm, folder) in zip(row[2:], folders.items(), strict=True):
            show(axis, image[index], read(folder / f"{case.name}{ENDING}")[index], arm)
    add_legend(figure, class_colours(LABELS))
    return png(figure)


def draw_training(folders: Mapping[str, Path]) -> bytes:
    """Draw training loss and nnU-Net's validation Dice of every arm over the epochs, as PNG; the last arm is dashed."""
    curves = {"train_losses": "training loss (lower is better)", "mean_fg_dice": "validation Dice (higher is better)"}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 2.9), layout="constrained")
        FigureCanvasAgg(figure)
        for number, (key, title) in enumerate(curves.items(), 1):
            axis = figure.add_subplot(1, len(curves), number)
            for left, (arm, folder) in zip(range(len(folders) - 1, -1, -1), folders.items(), strict=True):
                log = open_foreign(folder / "checkpoint_final.pth")["logging"]
                style = "-" if left else "--"
                axis.plot(range(1, len(log[key]) + 1), log[key], style, marker=".", label=arm)
            axis.set_title(title, loc="left", fontsize=10)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.set_xlabel("epoch")
            axis.grid(alpha=0.25)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=3)
    return png(figure)


def read(path: Path) -> np.ndarray:
    """Read the voxels of a file (slices, height, width)."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
