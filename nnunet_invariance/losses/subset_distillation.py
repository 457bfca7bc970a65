"""Distillation from the full set of modalities to a subset."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.losses.base import Loss, check_dimensions, check_shape


class SubsetDistillationLoss(Loss):
    r"""Divergence of a segmentation from a subset of the modalities from that of the same network with all of them.

    .. math:: L = \mathrm{KL}(\mathrm{sg}(p_{all}) \,\|\, p_{subset})

    in nats per voxel (knowledge distillation, arXiv 1503.02531, at temperature 1).

    >>> logits = torch.zeros(2, 3, 4, 4, 4)
    >>> SubsetDistillationLoss()(logits, logits, torch.tensor([True, False]))
    tensor(0.)

    Args:
        multilabel: p is the sigmoid of each channel, for regions that may overlap, and the loss is their mean.
    """

    def __init__(self, multilabel: bool = False) -> None:
        super().__init__()
        self.multilabel = multilabel

    def forward(self, outputs: Tensor, reference: Tensor, valid_mask: Tensor) -> Tensor:
        """The loss in float32 or better.

        Shape:
            outputs: logits (B, K, *spatial) from the subset.
            reference: logits of the same shape from all modalities; they get no gradient.
            valid_mask: (B,) bool, the samples in which the subset lacks a modality.
            Returns a scalar, at least 0: the mean over voxels, then over samples. The other samples add 0.

        Raises:
            ShapeError: the shapes do not agree.
        """
        check_dimensions("outputs", outputs, 2, "(B, K, *spatial)")
        check_shape("reference", reference, outputs.shape, "(B, K, *spatial) of 'outputs'")
        check_shape("valid_mask", valid_mask, outputs.shape[:1], "(B,) of 'outputs'")
        with torch.autocast(outputs.device.type, enabled=False):
            shown = valid_mask.view(-1, *[1] * (outputs.ndim - 1))
            logits, target = (torch.where(shown, at_least_float32(x), 0) for x in (outputs, reference.detach()))
            q, p = self._log_probabilities(logits), self._log_probabilities(target)
            return (p.exp() * (p - q)).sum(1).mean()

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        """Log-probabilities; the classes are axis 1."""
        if self.multilabel:  # two classes per channel: yes and no
            return torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits)), 1)
        return F.log_softmax(logits, 1)
