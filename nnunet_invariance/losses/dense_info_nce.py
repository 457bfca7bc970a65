"""InfoNCE between positions of two views of one volume, with a minimum distance to the negatives."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.losses.base import Loss, check_dimensions, check_number, check_shape, check_temperature


class DenseInfoNCE(Loss):
    r"""Each position of one view has to find itself in the other view, among positions of the same volume.

    With the unit rows :math:`z = [a; b]` of both views, :math:`S = z z^\top / T`, and :math:`i^+` the same position in
    the other view:

    .. math:: L = \frac{1}{|V|} \sum_{i \in V} \Big( \log \sum_{j \in D(i)} \exp S_{ij} - S_{i i^+} \Big),
        \quad D(i) = \{i^+\} \cup \{j \in V : \lVert p_j - p_i \rVert \ge r\}

    V are the valid rows of both views and p their positions in the volume. Positions of other volumes are no negatives,
    because they may show the same anatomy. The loss is the mean over samples of the mean within a sample. The form is
    that of VADeR (arXiv 2011.05499) with negatives at a distance.

    >>> rows, positions = torch.eye(4)[None], torch.arange(4.0)[None, :, None] * 10
    >>> DenseInfoNCE(temperature=1.0, least_distance=4)(rows, rows, positions)  # log(1 + 6 / e)
    tensor(1.1654)

    Args:
        temperature: T, larger than 0.
        least_distance: r, in the unit of the positions.

    Raises:
        OptionError: a value is out of range.
    """

    def __init__(self, temperature: float = 0.1, least_distance: float = 4.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.least_distance = check_number("least_distance", least_distance, 0)

    def forward(self, first: Tensor, second: Tensor, positions: Tensor, valid_mask: Tensor | None = None) -> Tensor:
        """The loss in float32 or better, also under autocast.

        Shape:
            first, second: (B, N, C), row n of sample b shows the same position in both views.
            positions: (B, N, D), in the volume.
            valid_mask: (B, N) bool; a position that is False is no anchor and no negative. Default: all True.
            Returns a scalar, at least 0; 0 where no position is valid.

        Raises:
            ShapeError: the shapes do not agree.
        """
        logits, positive, anchors = self._logits(first, second, positions, valid_mask)
        errors = torch.where(anchors, logits.logsumexp(2) - positive, 0)
        return (errors.sum(1) / anchors.sum(1).clamp(min=1)).mean()

    @torch.no_grad()
    def accuracy(self, first: Tensor, second: Tensor, positions: Tensor, valid_mask: Tensor | None = None) -> Tensor:
        """Fraction of valid rows that are more similar to their positive than to any negative; a scalar in [0, 1].

        Rows that are all equal match nothing.
        """
        logits, positive, anchors = self._logits(first, second, positions, valid_mask)
        twin = torch.eye(first.shape[1], dtype=torch.bool, device=first.device).repeat(2, 2)
        hits = anchors & (positive > logits.masked_fill(twin, -torch.inf).amax(2))
        return hits.sum() / anchors.sum().clamp(min=1)

    def _logits(
        self, first: Tensor, second: Tensor, positions: Tensor, valid_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Similarities (B, 2N, 2N), -inf outside of the denominator; those of the positives; the valid rows (B, 2N)."""
        check_dimensions("first", first, 3, "(B, N, C)", most=3)
        check_shape("second", second, first.shape, "(B, N, C) of 'first'")
        check_shape("positions", positions, (*first.shape[:2], positions.shape[-1]), "(B, N, D)")
        if valid_mask is None:
            valid_mask = torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)
        check_shape("valid_mask", valid_mask, first.shape[:2], "(B, N) of 'first'")
        n = first.shape[1]
        with torch.autocast(first.device.type, enabled=False):
            rows = F.normalize(torch.cat((at_least_float32(first), at_least_float32(second)), 1), dim=2)
            similarity = rows @ rows.transpose(1, 2) / self.temperature
            both = at_least_float32(positions).repeat(1, 2, 1)
            far = (both[:, :, None] - both[:, None]).square().sum(3) >= self.least_distance**2
        anchors = valid_mask.repeat(1, 2)
        twin = torch.eye(n, dtype=torch.bool, device=first.device).repeat(2, 2)
        itself = torch.eye(2 * n, dtype=torch.bool, device=first.device)
        allowed = (far & anchors[:, None] & ~twin) | (twin & ~itself)
        positive = torch.cat((similarity[:, :n, n:].diagonal(dim1=1, dim2=2),) * 2, 1)
        return similarity.masked_fill(~allowed, -torch.inf), positive, anchors
