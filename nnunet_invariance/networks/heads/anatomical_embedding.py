"""Two unit embeddings of every position: a coarse one for the body part, a fine one for the position within it."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.networks.planned import cumulative_strides, token_stage

COARSE_STRIDE, FINE_STRIDE = 16, 2
FEATURES = 128


class FeaturePyramid(nn.Module):
    """Feature pyramid: 1x1x1 lateral convolutions, added from the coarsest stage up, and one 3x3x3 convolution.

    >>> import torch
    >>> FeaturePyramid([4, 8], features=16)([torch.rand(1, 4, 8, 8, 8), torch.rand(1, 8, 4, 4, 4)]).shape
    torch.Size([1, 16, 8, 8, 8])

    Args:
        channels: of the stages, finest first.
    """

    def __init__(self, channels: Sequence[int], features: int = FEATURES) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv3d(c, features, 1) for c in channels)
        self.smooth = nn.Conv3d(features, features, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Unit vectors (B, ``features``, *spatial) on the grid of the finest map, at least float32."""
        *finer, x = [lateral(m) for lateral, m in zip(self.lateral, maps, strict=True)]
        for lateral in reversed(finer):
            x = lateral + F.interpolate(x, size=lateral.shape[2:], mode="nearest")
        return F.normalize(at_least_float32(self.smooth(x)), dim=1)


class EmbeddingHead(nn.Module):
    """The two embeddings of SAM (arXiv 2012.02383), from the feature maps of an encoder.

    The coarse embedding is at the stage nearest stride 16, the fine one at the stage nearest stride 2. Stages between
    them join the fine pyramid, deeper ones join the coarse pyramid. In shallow plans both may be the same stage.

    >>> import torch
    >>> head = EmbeddingHead([4, 8, 8], [[1, 1, 1], [2, 2, 2], [8, 8, 8]], features=16)
    >>> fine, coarse = head([torch.rand(1, c, n, n, n) for c, n in ((4, 32), (8, 16), (8, 2))])
    >>> fine.shape, coarse.shape
    (torch.Size([1, 16, 16, 16, 16]), torch.Size([1, 16, 2, 2, 2]))

    Args:
        channels: of the encoder's stages, finest first; strides: of each stage with respect to the one before.

    Attributes:
        fine_cell, coarse_cell: voxels of the image per cell of the two maps.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[Sequence[int]], features: int = FEATURES) -> None:
        super().__init__()
        self.fine_stage, self.coarse_stage = (token_stage(strides, wanted) for wanted in (FINE_STRIDE, COARSE_STRIDE))
        cells = cumulative_strides(strides)
        self.fine_cell, self.coarse_cell, self.deepest_cell = (
            cells[self.fine_stage], cells[self.coarse_stage], cells[-1],
        )  # fmt: skip
        self.fine_stages = range(self.fine_stage, max(self.coarse_stage, self.fine_stage + 1))
        self.fine = FeaturePyramid([channels[s] for s in self.fine_stages], features)
        self.coarse = FeaturePyramid(channels[self.coarse_stage :], features)

    def forward(self, skips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Fine and coarse unit vectors: (B, 128, *fine grid), (B, 128, *coarse grid)."""
        return self.fine([skips[s] for s in self.fine_stages]), self.coarse(skips[self.coarse_stage :])


def upsample_unit(coarse: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate unit vectors (B, D, *grid) trilinearly to a finer grid and normalise them again."""
    return F.normalize(F.interpolate(coarse, size=tuple(size), mode="trilinear", align_corners=False), dim=1)
