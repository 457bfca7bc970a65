"""A picture of matched points: query points of one volume, and their matches in other volumes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.networks.matching import match_points
from nnunet_invariance.nnunet.cases import Case, load_volume
from nnunet_invariance.pretraining.data.alignment import sample_points_in_body
from nnunet_invariance.pretraining.data.embedder import Embedder
from nnunet_invariance.weights.locate import FINAL

NUM_POINTS, NUM_VOLUMES = 4, 4


def preview_matches(folder: Path, cases: Sequence[Case], device: str = "cpu", seed: int = 0) -> Path:
    """Write ``preview.png`` into the folder of a finished ``pretrain sam``: one row per query, one column per volume.

    The first column is the volume of the queries. Each picture shows the plane through the point along the first axis,
    and its title the similarity and the cycle error.

    Raises:
        NonFiniteEmbeddingError: an embedding contains NaN or infinity.
        OutputError: the file cannot be written.
    """
    rng = np.random.default_rng(seed)
    chosen = [cases[i] for i in rng.permutation(len(cases))[:NUM_VOLUMES]]
    embed = Embedder.load(folder / FINAL, device)
    images = [np.asarray(load_volume(case)[:]) for case in chosen]
    queries = torch.tensor(sample_points_in_body(chosen[0], images[0][0], NUM_POINTS, rng)).float()
    first = embed(images[0])
    figure = Figure(figsize=(2.6 * len(chosen), 2.8 * NUM_POINTS), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(NUM_POINTS, len(chosen), squeeze=False)
    for column, (case, image) in enumerate(zip(chosen, images, strict=True)):
        if column == 0:
            points, titles = queries.numpy(), [f"{case.name}: query"] * NUM_POINTS
        else:
            matches = match_points(first, embed(image), queries.to(device))
            points = matches.points.cpu().numpy()
            numbers = zip(matches.similarity.tolist(), matches.cycle_error.tolist(), strict=True)
            titles = [f"{case.name}\n{similarity:.2f}, cycle {error:.1f} mm" for similarity, error in numbers]
        for axis, point, title in zip(axes[:, column], points, titles, strict=True):
            _plot_point(axis, image[0], point, title, embed.spacing)
    path = folder / "preview.png"
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=100))
    return path


def _plot_point(axis: Axes, image: np.ndarray, point: np.ndarray, title: str, spacing: Sequence[float]) -> None:
    plane = image[min(int(point[0]), image.shape[0] - 1)]
    axis.imshow(plane, cmap="gray", interpolation="nearest", aspect=spacing[1] / spacing[2])
    axis.plot(point[2] - 0.5, point[1] - 0.5, "+", color="red", markersize=14)  # imshow counts from voxel centres
    axis.set_title(title, fontsize=8)
    axis.set(xticks=[], yticks=[])
