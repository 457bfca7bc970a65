"""An estimate must tell its individual from others."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.common.precision import at_least_float32


class IndividualContrast(nn.Module):
    r"""InfoNCE between two views of an individual, modalities counting as views (L_contr of PUIR, arXiv 2411.06106).

    .. math:: L = - \frac1N \sum_n \frac{1}{|P_n|} \sum_{p \in P_n} \log \frac{\exp(a_n \cdot b_p / T)}
              {\exp(a_n \cdot b_p / T) + \sum_{q \in Q_n} \exp(a_n \cdot b_q / T)}

    with unit rows; P are keys of the anchor's own crop, Q keys of other cases. Other crops of the same case are
    neither: they may overlap. The release's rows are not normalised, and with one sample a batch its loss is 0.

    Args:
        temperature: T, larger than 0.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, anchors: Tensor, anchor_keys: Tensor, keys: Tensor, key_ids: Tensor) -> Tensor:
        """The loss, at least 0; anchors with fewer than two negatives, or without a positive, add nothing.

        Shape:
            anchors: (N, D), with gradient. keys: (M, D), without.
            anchor_keys, key_ids: (N, 2) and (M, 2) whole numbers, case and crop of each row; a negative case in
            ``key_ids`` marks an empty place.
        """
        a, b = (F.normalize(at_least_float32(rows), dim=1) for rows in (anchors, keys.detach()))
        logits = a @ b.T / self.temperature
        same_case = anchor_keys[:, None, 0] == key_ids[None, :, 0]
        positive = same_case & (anchor_keys[:, None, 1] == key_ids[None, :, 1])
        negative = ~same_case & (key_ids[None, :, 0] >= 0)
        others = logits.masked_fill(~negative, -torch.inf)
        counts = (negative.sum(1) > 1) & positive.any(1)
        # Where nothing is to be summed the value is replaced before the logarithm, or its gradient would be NaN.
        others = torch.where(counts[:, None], others, 0).logsumexp(1, keepdim=True)
        each = torch.where(positive, F.softplus(others - logits), 0).sum(1) / positive.sum(1).clamp(min=1)
        return torch.where(counts, each, 0).sum() / counts.sum().clamp(min=1)
