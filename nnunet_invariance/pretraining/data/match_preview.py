"""A picture of matched places: query points of one volume and where the embedding finds them in others."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.networks.matching import match_points
from nnunet_invariance.nnunet.cases import Case, load_volume
from nnunet_invariance.pretraining.data.alignment import points_in_body
from nnunet_invariance.pretraining.data.embedder import Embedder
from nnunet_invariance.weights.locate import FINAL

POINTS, TARGETS = 4, 3


def preview_matches(folder: Path, cases: Sequence[Case], device: str = "cpu", seed: int = 0) -> Path:
    """Write ``preview.png`` into the folder of a finished ``pretrain sam``: a row a query, a column a volume.

    The first column is the volume of the queries. Each picture is the plane through the place along the first axis;
    above it stand similarity and cycle error.

    Raises:
        OutputError: the file cannot be written.
    """
    rng = np.random.default_rng(seed)
    chosen = [cases[i] for i in rng.permutation(len(cases))[: TARGETS + 1]]
    embed = Embedder.load(folder / FINAL, device)
    images = [np.asarray(load_volume(case)[:]) for case in chosen]
    queries = torch.tensor(points_in_body(chosen[0], images[0][0], POINTS, rng)).float()
    source = embed(images[0])
    figure = Figure(figsize=(2.6 * len(chosen), 2.8 * POINTS), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(POINTS, len(chosen), squeeze=False)
    for column, (case, image) in enumerate(zip(chosen, images, strict=True)):
        if column == 0:
            places, titles = queries.numpy(), [f"{case.name}: query"] * POINTS
        else:
            found = match_points(source, embed(image), queries.to(device))
            places = found.points.cpu().numpy()
            numbers = zip(found.similarity.tolist(), found.cycle_error.tolist(), strict=True)
            titles = [f"{case.name}\n{similarity:.2f}, cycle {error:.1f} mm" for similarity, error in numbers]
        for axis, place, title in zip(axes[:, column], places, titles, strict=True):
            _draw(axis, image[0], place, title, embed.spacing)
    path = folder / "preview.png"
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=100))
    return path


def _draw(axis, image: np.ndarray, place: np.ndarray, title: str, spacing: Sequence[float]) -> None:
    plane = image[min(int(place[0]), image.shape[0] - 1)]
    axis.imshow(plane, cmap="gray", interpolation="nearest", aspect=spacing[1] / spacing[2])
    axis.plot(place[2] - 0.5, place[1] - 0.5, "+", color="red", markersize=14)  # imshow counts from voxel centres
    axis.set_title(title, fontsize=8)
    axis.set(xticks=[], yticks=[])
