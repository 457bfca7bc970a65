"""Patch-wise InfoNCE between two views of the same voxels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.losses.precision import at_least_float32


class PatchInfoNCE(nn.Module):
    r"""Each position of one view must find itself in the other view, among all positions of both views.

    With the unit rows :math:`z = [a; b]` of both views (2BN rows), :math:`S = z z^\top / T`, and :math:`i^+` the same
    position of the same sample in the other view:

    .. math:: L = \frac{1}{|V|} \sum_{i \in V} \Big( \log \sum_{j \in V,\, j \ne i} \exp S_{ij} - S_{i i^+} \Big)

    V holds the rows that count. The form is NT-Xent (SimCLR, arXiv 2002.05709) over patches, as ICMSeg uses it between
    two styles of an image (arXiv 2411.05223). ICMSeg's negatives are the same position of other images; batches in 3-D
    are too small for that, so here every other position of the batch is a negative.

    Args:
        temperature: T, larger than 0.
    """

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss in float32 or better, whatever autocast is on; a uniform guess has log(2BN - 1).

        Shape:
            first, second: (B, N, D), position n of sample b in both views; they need not be normalised.
            valid: (B, N) bool; a position that is False is neither anchor, positive nor negative. All by default.
            Returns a scalar, at least 0; 0 where no position counts.
        """
        with torch.autocast(first.device.type, enabled=False):
            z = at_least_float32(torch.cat((first.flatten(0, 1), second.flatten(0, 1))))
            half = len(z) // 2
            counts = torch.ones(half, dtype=torch.bool, device=z.device) if valid is None else valid.flatten()
            counts = counts.repeat(2)
            # A row that does not count may hold anything, even NaN: it leaves before it can reach a gradient.
            z = F.normalize(z.masked_fill(~counts[:, None], 0), dim=1)
            similarity = z @ z.T / self.temperature
            excluded = ~counts | torch.eye(len(z), dtype=torch.bool, device=z.device)
            # The smallest number instead of -inf: rows without any other position stay finite in value and gradient.
            similarity = similarity.masked_fill(excluded, torch.finfo(z.dtype).min)
            positive = torch.cat((similarity.diagonal(half), similarity.diagonal(-half)))
            loss = (similarity.logsumexp(1) - positive).masked_fill(~counts, 0)
            return loss.sum() / counts.sum().clamp(min=1)
