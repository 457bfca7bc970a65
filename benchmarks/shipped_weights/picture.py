"""The picture of a model card: synthetic pairs, and the first three components of the features of both appearances."""

from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from nnunet_invariance.common.atomic import atomic_write_path
from nnunet_invariance.networks.feature_levels import feature_maps
from nnunet_invariance.pretraining.data.synthetic_pairs import FIRST_HELD_OUT_NUMBER
from nnunet_invariance.pretraining.methods.anatomix import Anatomix

TITLES = ("label map", "first appearance", "second appearance", "features of the first", "features of the second")
#: Of the pairs that are shown; neither trained on nor measured.
SHOWN = FIRST_HELD_OUT_NUMBER + 5000


@torch.no_grad()
def draw_features(method: Anatomix, network: nn.Module, path: Path, pairs: int = 3) -> None:
    """Write a PNG with one row per pair: equal colours are similar features of the finest map.

    Raises:
        OutputError: the file cannot be written.
    """
    figure = Figure(figsize=(8.5, 1.8 * pairs), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(pairs, len(TITLES), squeeze=False)
    for row in range(pairs):
        parameters = [method.pair_generator.sample(0, SHOWN + row, augment=False)]
        volumes = method.pair_generator.volumes(parameters, torch.device("cpu"))
        shown = method.pair_generator.patches(volumes, [p.cuts[0] for p in parameters])
        images = torch.cat(shown.views)
        images = (images - images.mean((1, 2, 3, 4), keepdim=True)) / images.std((1, 2, 3, 4), keepdim=True)
        colours = components(feature_maps(network, images)[-1])
        middle = images.shape[2] // 2
        planes = [shown.labels[0, 0, middle], *images[:, 0, middle], *colours[:, :, middle].permute(0, 2, 3, 1)]
        for column, (plane, title) in enumerate(zip(planes, TITLES, strict=True)):
            axes[row, column].imshow(plane.numpy(), cmap="nipy_spectral" if column == 0 else "gray")
            axes[row, column].set(xticks=[], yticks=[], title=title if row == 0 else "")
            axes[row, column].title.set_fontsize(8)
    atomic_write_path(path, lambda temporary: figure.savefig(temporary, dpi=90, format="png"))


def components(features: Tensor) -> Tensor:
    """The first three principal components (2, 3, z, y, x) of the features of both images together, in [0, 1]."""
    rows = features.movedim(1, -1).flatten(0, -2)
    rows = (rows - rows.mean(0)) / rows.std(0).clamp(min=1e-6)
    found = rows @ torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -3:]
    low, high = (torch.quantile(found[:: max(1, len(found) // 10_000)], q, dim=0) for q in (0.02, 0.98))
    scaled = ((found - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return scaled.reshape(len(features), *features.shape[2:], 3).movedim(-1, 1)
