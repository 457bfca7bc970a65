"""Labels that a network predicts with confidence, and nnU-Net's loss on them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn


def pseudo_labels(logits: Tensor, confidence: float, regions: bool) -> Tensor:
    """Labels of the voxels whose probability is above ``confidence``, in the form of nnU-Net's targets.

    Args:
        logits: (B, C, *spatial).
        regions: whether the channels are regions, which may overlap; a voxel then counts if all of them are certain.

    Returns:
        (B, 1, *spatial) int64 with the value C where the voxel does not count; for regions (B, C + 1, *spatial) bool
        with these voxels in the last channel.

    >>> pseudo_labels(torch.tensor([[[2.0, 0.1], [0.0, 0.0]]]), 0.7, regions=False)
    tensor([[[0, 2]]])
    """
    if regions:
        probability = logits.float().sigmoid()
        certain = (torch.maximum(probability, 1 - probability) > confidence).all(1, keepdim=True)
        return torch.cat((probability > 0.5, ~certain), 1)
    probability, labels = logits.float().softmax(1).max(1, keepdim=True)
    return torch.where(probability > confidence, labels, logits.shape[1])


def counted_voxels(labels: Tensor, classes: int, regions: bool) -> Tensor:
    """Bool (B, 1, *spatial): the voxels of :func:`pseudo_labels` that count; ``classes`` is C."""
    return ~labels[:, -1:] if regions else labels != classes


def foreground_voxels(labels: Tensor, classes: int, regions: bool) -> Tensor:
    """Number of voxels of :func:`pseudo_labels` in the foreground, summed over classes or regions."""
    counted = counted_voxels(labels, classes, regions)
    return ((labels[:, :-1] if regions else labels > 0) & counted).sum()


class PseudoLabelLoss(nn.Module):
    r"""Cross-entropy and Dice on the counted voxels, at every resolution of deep supervision.

    .. math:: L = \sum_r w_r \big( CE(s_r, \hat y_r) - Dice(s_r, \hat y_r) \big)

    It is nnU-Net's own loss with an ignore label, so that classes, regions and the Dice over a batch are as there.

    Args:
        classes: C, number of channels of the logits.
        regions: see :func:`pseudo_labels`.
        batch_dice: Dice over the batch instead of each sample.
        ddp: whether the Dice over a batch is over all ranks.
        weights: :math:`w_r`, finest first; one of 0 skips the resolution.

    >>> loss = PseudoLabelLoss(2, regions=False, batch_dice=False, ddp=False, weights=[1.0])
    >>> loss([torch.zeros(1, 2, 4, 4)], torch.full((1, 1, 4, 4), 2)).item()  # no voxel counts
    -1.0
    """

    def __init__(self, classes: int, regions: bool, batch_dice: bool, ddp: bool, weights: Sequence[float]) -> None:
        super().__init__()
        dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": regions, "ddp": ddp}
        self.loss = (
            DC_and_BCE_loss({}, dice, use_ignore_label=True, dice_class=MemoryEfficientSoftDiceLoss)
            if regions
            else DC_and_CE_loss(dice, {}, ignore_label=classes, dice_class=MemoryEfficientSoftDiceLoss)
        )
        self.weights = weights

    def forward(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The loss of the logits of all resolutions, finest first, and labels of the finest one."""
        parts = zip(self.weights, logits, strict=True)
        return sum(weight * self.loss(s.float(), _resized(labels, s.shape[2:])) for weight, s in parts if weight)


def _resized(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels at another resolution, chosen as nnU-Net does for deep supervision."""
    if labels.shape[2:] == torch.Size(size):
        return labels
    return F.interpolate(labels.float(), tuple(size), mode="nearest-exact").to(labels.dtype)
