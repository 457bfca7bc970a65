"""Agreement of the representations that are estimated from different modalities of one individual."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.losses.base import Loss, check_choice, check_dimensions, check_shape


def normalize_channels(maps: Tensor, axis: int) -> Tensor:
    """Mean 0 and variance 1 over the channels at ``axis``, in float32 or better, so scale does not change a distance.

    >>> normalize_channels(torch.tensor([[1.0, 3.0]]), 1)
    tensor([[-1.0000,  1.0000]])
    """
    maps = at_least_float32(maps).movedim(axis, -1)
    return F.layer_norm(maps, maps.shape[-1:]).movedim(-1, axis)


class ModalityInvarianceLoss(Loss):
    r"""Distance of each modality's estimate to an anchor made of the others (L_inv of PUIR, arXiv 2411.06106).

    .. math:: L = \frac1B \sum_b \frac{1}{|P_b|} \sum_{i \in P_b} \overline{ \big( \hat X^{(i)} - \mathrm{sg}(a_i)
              \big)^2 }, \quad \hat X = \mathrm{LN}(X)

    P are the present modalities. With ``anchor="others"``, :math:`a_i` is the mean of :math:`\hat X^{(j)}` over the
    other modalities. With ``anchor="running"``, the form of the release, modalities follow each other in an order: the
    first one is the anchor and has no loss, then :math:`a \leftarrow (a + \hat X^{(i)}) / 2`. The release uses raw
    features, whose distance falls when they shrink; hence layer norm over channels.

    >>> estimates = torch.rand(1, 1, 8, 4, 4, 4).expand(-1, 3, -1, -1, -1, -1)
    >>> ModalityInvarianceLoss()(estimates, torch.ones(1, 3, dtype=torch.bool)).item() < 1e-6
    True

    Args:
        anchor: "others" or "running".

    Raises:
        OptionError: there is no such anchor.
    """

    def __init__(self, anchor: Literal["others", "running"] = "others") -> None:
        super().__init__()
        self.anchor = check_choice("anchor", anchor, "others", "running")

    def forward(self, estimates: Tensor, present: Tensor, order: Tensor | None = None) -> Tensor:
        """The loss in float32 or better, at least 0.

        Shape:
            estimates: (B, C, F, *spatial), all in one frame of reference. present: (B, C) bool.
            order: (B, C), a permutation of the channels of each sample, for "running". Default: the channels' order.
            Returns a scalar; samples with fewer than two present modalities add 0.

        Raises:
            ShapeError: the shapes do not agree.
        """
        check_dimensions("estimates", estimates, 3, "(B, C, F, *spatial)")
        check_shape("present", present, estimates.shape[:2], "(B, C) of 'estimates'")
        if order is not None:
            check_shape("order", order, estimates.shape[:2], "(B, C) of 'estimates'")
        estimates = normalize_channels(estimates, 2)
        if self.anchor == "others":
            valid = present & (present.sum(1, keepdim=True) > 1)
            return _mean_distance(estimates, _mean_of_others(estimates.detach(), present), valid)
        if order is not None:
            estimates = torch.take_along_dim(estimates, order.view(*order.shape, *[1] * (estimates.ndim - 2)), 1)
            present = present.gather(1, order)
        return _mean_distance(estimates, *_running_anchors(estimates.detach(), present))


def _mean_distance(estimates: Tensor, anchors: Tensor, valid: Tensor) -> Tensor:
    mask = valid.view(*valid.shape, *[1] * (estimates.ndim - 2))
    distance = torch.where(mask, estimates - anchors, 0).square().flatten(2).mean(2)
    return (distance.sum(1) / valid.sum(1).clamp(min=1)).mean()


def _mean_of_others(estimates: Tensor, present: Tensor) -> Tensor:
    mask = present.view(*present.shape, *[1] * (estimates.ndim - 2))
    own = torch.where(mask, estimates, 0)
    number = present.sum(1, keepdim=True).view(len(present), *[1] * (estimates.ndim - 1))
    return (own.sum(1, keepdim=True) - own) / (number - 1).clamp(min=1)


def _running_anchors(estimates: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The anchor of each modality, and whether it has one."""
    anchor, started = estimates[:, 0], torch.zeros_like(present[:, 0])
    anchors, valid = [], []
    for own, here in zip(estimates.unbind(1), present.unbind(1), strict=True):
        anchors.append(anchor)
        valid.append(here & started)
        wide_here, wide_started = (mask.view(-1, *[1] * (own.ndim - 1)) for mask in (here, started))
        anchor = torch.where(wide_here, torch.where(wide_started, (anchor + own) / 2, own), anchor)
        started = started | here
    return torch.stack(anchors, 1), torch.stack(valid, 1)
