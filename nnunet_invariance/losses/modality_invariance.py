"""Each modality's estimate of the individual must agree with those of the others."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.common.precision import at_least_float32


def normalised(maps: Tensor, axis: int) -> Tensor:
    """Mean 0 and variance 1 over the channels at ``axis``, in float32 or better: a scale cannot lower a distance."""
    maps = at_least_float32(maps).movedim(axis, -1)
    return F.layer_norm(maps, maps.shape[-1:]).movedim(-1, axis)


class ModalityInvarianceLoss(nn.Module):
    r"""Distance of each estimate to an anchor made of the others (L_inv of PUIR, arXiv 2411.06106).

    .. math:: L = \frac1B \sum_b \frac{1}{|P_b|} \sum_{i \in P_b} \overline{ \big( \hat X^{(i)} - \mathrm{sg}(a_i)
              \big)^2 }, \quad \hat X = \mathrm{LN}(X)

    P are the modalities present. With ``anchor="others"``, :math:`a_i` is the mean of :math:`\hat X^{(j)}` over the
    other ones. With "running", the release's form, modalities are visited in an order: the first one is the anchor and
    has no loss, then :math:`a \leftarrow (a + \hat X^{(i)}) / 2`. Raw features, as in the release, let X_h shrink
    to nothing; hence LN over channels.

    Args:
        anchor: which of both.
    """

    def __init__(self, anchor: Literal["others", "running"] = "others") -> None:
        super().__init__()
        self.anchor = anchor

    def forward(self, estimates: Tensor, present: Tensor, order: Tensor | None = None) -> Tensor:
        """The loss, at least 0; samples with fewer than two modalities add 0.

        Shape:
            estimates: (B, C, F, *spatial), all in one frame. present: (B, C) bool.
            order: (B, C), a permutation of the channels in each sample; their own order by default. "running" reads it.
        """
        estimates = normalised(estimates, 2)
        if self.anchor == "others":
            counts = present & (present.sum(1, keepdim=True) > 1)
            return self._mean(estimates, _mean_of_others(estimates.detach(), present), counts)
        if order is not None:
            estimates = torch.take_along_dim(estimates, order.view(*order.shape, *[1] * (estimates.ndim - 2)), 1)
            present = present.gather(1, order)
        anchors, counts = _running_anchors(estimates.detach(), present)
        return self._mean(estimates, anchors, counts)

    @staticmethod
    def _mean(estimates: Tensor, anchors: Tensor, counts: Tensor) -> Tensor:
        mask = counts.view(*counts.shape, *[1] * (estimates.ndim - 2))
        distance = torch.where(mask, estimates - anchors, 0).square().flatten(2).mean(2)
        return (distance.sum(1) / counts.sum(1).clamp(min=1)).mean()


def _mean_of_others(estimates: Tensor, present: Tensor) -> Tensor:
    mask = present.view(*present.shape, *[1] * (estimates.ndim - 2))
    own = torch.where(mask, estimates, 0)
    number = present.sum(1, keepdim=True).view(len(present), *[1] * (estimates.ndim - 1))
    return (own.sum(1, keepdim=True) - own) / (number - 1).clamp(min=1)


def _running_anchors(estimates: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The anchor that each modality meets, and whether it meets one."""
    anchor, any_yet = estimates[:, 0], torch.zeros_like(present[:, 0])
    anchors, counts = [], []
    for own, here in zip(estimates.unbind(1), present.unbind(1), strict=True):
        anchors.append(anchor)
        counts.append(here & any_yet)
        wide_here, wide_any = (mask.view(-1, *[1] * (own.ndim - 1)) for mask in (here, any_yet))
        anchor = torch.where(wide_here, torch.where(wide_any, (anchor + own) / 2, own), anchor)
        any_yet = any_yet | here
    return torch.stack(anchors, 1), torch.stack(counts, 1)
