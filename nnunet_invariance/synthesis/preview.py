"""Preview image of the first elements: middle plane of the label map and of both appearances."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from nnunet_invariance.common.atomic import atomic_write_path
from nnunet_invariance.synthesis.engine import SynthesisEngine

TITLES = ("label map", "first appearance", "second appearance")


def write_preview(engine: SynthesisEngine, path: Path, n: int = 6) -> None:
    """Write a PNG with one element per column.

    Raises:
        OutputError: the file cannot be written.
    """
    colours = np.random.default_rng(0).uniform(0.15, 1, (256, 3))
    colours[0] = 0
    figure = Figure(figsize=(2 * n, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, n, squeeze=False)
    for column in range(n):
        pairs = engine.batch([column])
        for row, volume in enumerate(tuple(pairs)):
            plane = volume[0, 0, volume.shape[2] // 2].cpu().numpy()
            shown = {"cmap": ListedColormap(colours), "vmax": 255} if row == 0 else {"cmap": "gray", "vmax": 1}
            axes[row, column].imshow(plane, vmin=0, interpolation="nearest", **shown)
            axes[row, column].set(xticks=[], yticks=[], xlabel=f"element {column}" if row == 2 else "")
    for row, title in enumerate(TITLES):
        axes[row, 0].set_ylabel(title)
    atomic_write_path(path, lambda temporary: figure.savefig(temporary, dpi=100))
