"""Consistency of two predictions for the same voxels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.losses.base import Loss, check_dimensions, check_shape


class ConsistencyLoss(Loss):
    r"""Jensen-Shannon divergence of two predictions, in nats per voxel (arXiv 2007.13003, 2111.12525).

    .. math:: L = \tfrac{1}{2} \sum_i \mathrm{KL}(p_i \,\|\, \bar p), \quad \bar p = \tfrac{1}{2} (p_1 + p_2)

    >>> logits = torch.zeros(1, 2, 4, 4)
    >>> ConsistencyLoss()(logits, logits)
    tensor(0.)

    Args:
        multilabel: every channel is a binary prediction (nnU-Net's regions, which may overlap) instead of one of K
            classes.
    """

    def __init__(self, multilabel: bool = False) -> None:
        super().__init__()
        self.multilabel = multilabel

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss in float32 or better: the mean over voxels, and with ``multilabel`` over channels.

        Shape:
            first, second: logits (B, K, *spatial).
            Returns a scalar in [0, log 2].

        Raises:
            ShapeError: the shapes do not agree.
        """
        check_dimensions("first", first, 2, "(B, K, *spatial)")
        check_shape("second", second, first.shape, "(B, K, *spatial) of 'first'")
        with torch.autocast(first.device.type, enabled=False):
            p, q = self._log_probabilities(first), self._log_probabilities(second)
            mean = torch.logaddexp(p, q) - math.log(2)
            return (_divergence(p, mean) + _divergence(q, mean)) / 2

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        logits = at_least_float32(logits)
        if self.multilabel:  # two classes per channel: yes and no
            return torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits)), 1)
        return F.log_softmax(logits, 1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()
