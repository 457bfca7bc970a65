"""Cutout: boxes of the image are replaced by noise."""

from collections.abc import Sequence

import torch
from torch import Tensor

EDGE = (0.05, 0.25)  # of an axis
BOXES = 96  # maximum number; their mean volume is 0.34 %, together about 0.3


def sample_boxes(shape: Sequence[int], most: float, generator: torch.Generator) -> Tensor:
    """Sample boxes whose volumes add up to a share, uniform in [0, ``most``], of each image; (N, 1, *spatial) bool.

    Edges have 5 to 25 % of the length of an axis. Boxes can overlap, so that the hidden share can be smaller; it can
    be larger by one box.
    ``shape``: (N, 1, *spatial).
    """
    count, size = shape[0], tuple(shape[2:])

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device)

    share = most * uniform(count, 1)
    lines = []
    for n in size:
        edge = uniform(count, BOXES, 1) * (EDGE[1] - EDGE[0]) + EDGE[0]
        start = uniform(count, BOXES, 1) * (1 - edge)
        position = (torch.arange(n, device=generator.device) + 0.5) / n
        lines.append(((position >= start) & (position < start + edge)).float())  # (N, K, n)
    volume = torch.stack([line.mean(2) for line in lines]).prod(0)
    selected = (volume.cumsum(1) - volume < share).float()
    first, *rest = lines
    plane = rest[0]
    for line in rest[1:]:
        plane = (plane[..., None] * line[:, :, None]).flatten(2)
    number = (first * selected[..., None]).transpose(
        1, 2
    ) @ plane  # number of boxes over each voxel, without a loop over boxes
    return (number > 0).view(count, 1, *size)


def fill_with_noise(x: Tensor, hidden: Tensor, generator: torch.Generator) -> Tensor:
    """Replace the image in the boxes by normal noise with its mean and s.d.; both are (N, 1, *spatial)."""
    noise = torch.randn(x.shape, generator=generator, device=generator.device)
    axes = tuple(range(1, x.ndim))
    return torch.where(hidden, noise * x.std(axes, keepdim=True) + x.mean(axes, keepdim=True), x)
