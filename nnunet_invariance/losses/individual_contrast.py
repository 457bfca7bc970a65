"""Contrast between individuals: a representation identifies its individual."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.losses.base import Loss, check_dimensions, check_shape, check_temperature


class IndividualContrast(Loss):
    r"""InfoNCE between two views of an individual, with modalities as views (L_contr of PUIR, arXiv 2411.06106).

    .. math:: L = - \frac1N \sum_n \frac{1}{|P_n|} \sum_{p \in P_n} \log \frac{\exp(a_n \cdot b_p / T)}
              {\exp(a_n \cdot b_p / T) + \sum_{q \in Q_n} \exp(a_n \cdot b_q / T)}

    with unit rows. P are keys of the anchor's own crop, Q keys of other cases. Other crops of the same case are
    neither, because they may overlap. The release does not normalise the rows, and its loss is 0 for one sample per
    batch.

    >>> rows, ids = torch.eye(3), torch.tensor([[0, 0], [1, 1], [2, 2]])
    >>> IndividualContrast(temperature=1.0)(rows, ids, rows, ids)  # log(1 + 2 / e)
    tensor(0.5514)

    Args:
        temperature: T, larger than 0.

    Raises:
        OptionError: the temperature is out of range.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(self, anchors: Tensor, anchor_ids: Tensor, keys: Tensor, key_ids: Tensor) -> Tensor:
        """The loss in float32 or better, also under autocast, at least 0.

        Shape:
            anchors: (N, D). keys: (M, D), which get no gradient.
            anchor_ids, key_ids: (N, 2) and (M, 2) whole numbers, case and crop of each row. A negative case in
            ``key_ids`` marks an empty row.
            Returns a scalar; anchors with fewer than two negatives or without a positive add nothing.

        Raises:
            ShapeError: the shapes do not agree.
        """
        check_dimensions("anchors", anchors, 2, "(N, D)", most=2)
        check_dimensions("keys", keys, 2, "(M, D)", most=2)
        check_shape("keys", keys, (len(keys), anchors.shape[1]), "(M, D) with the D of 'anchors'")
        check_shape("anchor_ids", anchor_ids, (len(anchors), 2), "(N, 2) with the N of 'anchors'")
        check_shape("key_ids", key_ids, (len(keys), 2), "(M, 2) with the M of 'keys'")
        with torch.autocast(anchors.device.type, enabled=False):
            a, b = (F.normalize(at_least_float32(rows), dim=1) for rows in (anchors, keys.detach()))
            logits = a @ b.T / self.temperature
        same_case = anchor_ids[:, None, 0] == key_ids[None, :, 0]
        positive = same_case & (anchor_ids[:, None, 1] == key_ids[None, :, 1])
        negative = ~same_case & (key_ids[None, :, 0] >= 0)
        others = logits.masked_fill(~negative, -torch.inf)
        valid = (negative.sum(1) > 1) & positive.any(1)
        # Where there is nothing to sum, the value is replaced before the logarithm, whose gradient would be NaN.
        others = torch.where(valid[:, None], others, 0).logsumexp(1, keepdim=True)
        each = torch.where(positive, F.softplus(others - logits), 0).sum(1) / positive.sum(1).clamp(min=1)
        return torch.where(valid, each, 0).sum() / valid.sum().clamp(min=1)
