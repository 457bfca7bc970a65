"""Two views of the same voxels must be segmented alike."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.common.precision import at_least_float32


def consistency(first: Tensor, second: Tensor, independent: bool = False) -> Tensor:
    r"""Jensen-Shannon divergence of two predictions, in nats per voxel (arXiv 2007.13003, 2111.12525).

    .. math:: L = \tfrac{1}{2} \sum_i \mathrm{KL}(p_i \,\|\, \bar p), \quad \bar p = \tfrac{1}{2} (p_1 + p_2)

    Args:
        first, second: logits (B, K, *spatial).
        independent: every channel is a yes or no of its own (nnU-Net's regions) instead of one class of K.

    Returns a scalar in [0, log 2], the mean over voxels (and regions), in float32 or better.
    """
    with torch.autocast(first.device.type, enabled=False):
        logits = [at_least_float32(x) for x in (first, second)]
        if independent:  # yes and no as two classes
            logits = [torch.stack((F.logsigmoid(x), F.logsigmoid(-x)), 1) for x in logits]
        logs = [F.log_softmax(x, 1) for x in logits]
        mean = torch.logaddexp(*logs) - math.log(2)
        return sum((log.exp() * (log - mean)).sum(1).mean() for log in logs) / 2
