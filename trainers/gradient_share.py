"""The weight of an auxiliary loss whose gradient is a given share of another loss's gradient."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_invariance.common.collectives import all_reduce_sum

EVERY = 25  # steps
MOMENTUM = 0.9


class GradientShare:
    r"""Weight w of an auxiliary loss such that its gradient has a share s of the reference's norm.

    .. math:: w = s \, \|\nabla L_{ref}\| / \|\nabla L_{aux}\|

    It is measured every 25 steps and averaged exponentially with momentum 0.9; the first measurement counts in full.

    >>> x = nn.Parameter(torch.ones(1))
    >>> share = GradientShare(0.5)
    >>> share.update(4 * x.sum(), 2 * x.sum(), [x])
    >>> share.weight
    1.0
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.weight = 0.0

    def is_due(self, step: int) -> bool:
        """Whether a step (counted from 0) measures the gradients."""
        return step % EVERY == 0

    def update(
        self, reference: Tensor, auxiliary: Tensor, parameters: Sequence[nn.Parameter], scale: float = 1.0
    ) -> None:
        """Measure the gradients of two losses at the parameters; a measurement that is not finite is ignored.

        Args:
            parameters: those that require no gradient are ignored.
            scale: factor of both losses, against underflow in half precision; it cancels.
        """
        norms = torch.stack([self._norm(scale * loss, parameters) for loss in (reference, auxiliary)])
        found, other = all_reduce_sum(norms).tolist()
        if not (math.isfinite(found) and math.isfinite(other)) or other == 0:
            return
        measured = self.share * found / other
        self.weight = measured if self.weight == 0 else MOMENTUM * self.weight + (1 - MOMENTUM) * measured

    @staticmethod
    def _norm(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        with torch.autocast(loss.device.type, enabled=False):  # a backward pass belongs outside of autocast
            gradients = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        return torch.stack([g.float().norm() for g in gradients if g is not None]).norm()
