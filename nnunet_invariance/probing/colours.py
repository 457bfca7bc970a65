"""Features of a test case as colours: the principal components of its hypercolumns, one picture per network."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_invariance.common.pictures import add_legend, best_slice, class_colours, panels, png, show
from nnunet_invariance.networks.hypercolumns import compute_hypercolumns, linear_map, sample_hypercolumns
from nnunet_invariance.probing.samples import LabelledPatch

#: Voxels from which the components are computed.
VOXELS = 5000


def fit_colours(columns: Tensor, channels: Sequence[int]) -> tuple[Tensor, Tensor]:
    r"""Linear map from hypercolumns to red, green and blue: their first three principal components.

    Features are standardised, and every stage has the same variance, so that the many features of the coarse stages do
    not dominate. 0 and 1 are the 1st and 99th percentile of a component.

    Args:
        columns: (N, C), N of at least 3.
        channels: number of features of each stage; their sum is C.

    Returns:
        weight (3, C) and bias (3,).

    >>> weight, bias = fit_colours(torch.randn(100, 8, generator=torch.Generator().manual_seed(0)), (4, 4))
    >>> weight.shape, bias.shape
    (torch.Size([3, 8]), torch.Size([3]))
    """
    stages = torch.tensor([size for size in channels for _ in range(size)], device=columns.device)
    mean, deviation = columns.mean(0), columns.std(0).clamp(min=1e-6) * stages.sqrt()
    standardised = (columns - mean) / deviation
    directions = torch.linalg.svd(standardised, full_matrices=False).Vh[:3]
    strongest = directions.take_along_dim(directions.abs().argmax(1, keepdim=True), 1)
    directions = directions * strongest.sign()  # a principal component has no sign of its own
    values = standardised @ directions.T
    low, high = values.quantile(torch.tensor([0.01, 0.99], dtype=values.dtype, device=values.device), dim=0)
    scale = 1 / (high - low).clamp(min=1e-6)
    weight = directions * scale[:, None] / deviation
    return weight, -(low * scale) - weight @ mean


@torch.no_grad()
def feature_colours(network: nn.Module, image: Tensor, valid: Tensor) -> Tensor:
    r"""The hypercolumn of every voxel as a colour; the mapping is fitted to the valid voxels of this image and network.

    Args:
        network: in evaluation mode; see :func:`compute_hypercolumns`.
        image: (1, C, \*spatial).
        valid: (\*spatial) bool, on the CPU, False in padding, which is white.

    Returns:
        (\*spatial, 3) in [0, 1], on the CPU.
    """
    size = image.shape[2:]
    maps = compute_hypercolumns(network, image)
    voxels = valid.nonzero()
    voxels = voxels[torch.randperm(len(voxels), generator=torch.Generator().manual_seed(0))[:VOXELS]]
    columns = sample_hypercolumns(maps, size, voxels[None].to(image.device))[0]
    colours = linear_map(maps, *fit_colours(columns, maps.channels), size)[0].clamp(0, 1).movedim(0, -1).cpu()
    return torch.where(valid[..., None], colours, 1)


def draw_features(
    patch: LabelledPatch, networks: Mapping[str, nn.Module], labels: Mapping[str, object], device: str = "cpu"
) -> bytes:
    """The slice of a case that shows its classes best, as PNG: image, classes, and the features of every network.

    Args:
        networks: by name.
        labels: of dataset.json.
    """
    truth = patch.labels.numpy()
    index = (best_slice(truth),) if truth.ndim == 3 else ()
    image = patch.image[0, 0].numpy()[index]
    figure, axes = panels(1, 2 + len(networks), image.shape[0] / image.shape[1])
    show(axes[0, 0], image, None, patch.name)
    show(axes[0, 1], image, np.maximum(truth[index], 0), "reference")
    for axis, (name, network) in zip(axes[0, 2:], networks.items(), strict=True):
        colours = feature_colours(network.to(device).eval(), patch.image.to(device), patch.labels >= 0)
        network.cpu()
        show(axis, colours.numpy()[index], None, name)
    add_legend(figure, class_colours(labels))
    return png(figure)
