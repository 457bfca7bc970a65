"""What is computed from a turned image must be the turned result."""

import torch
from torch import Tensor

from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.losses.modality_invariance import normalised


def output_equivariance(undone: Tensor, reference: Tensor, independent: bool = False) -> Tensor:
    r"""Distance of two segmentations, the turned one turned back (L_equ of PUIR at output level, arXiv 2411.06106).

    .. math:: L = \overline{\big| p(g^{-1} y(g x)) - \mathrm{sg}(p(y(x))) \big|^2}, \quad p = \mathrm{softmax}

    The sum is over classes, the mean over voxels and samples; in [0, 2].

    Args:
        undone: logits (B, K, *spatial) of the turned image, turned back; reference: those of the image itself.
        independent: p is the sigmoid, for regions that overlap; then the mean over K.
    """
    first, second = at_least_float32(undone), at_least_float32(reference).detach()
    if independent:
        return (first.sigmoid() - second.sigmoid()).square().mean()
    return (torch.softmax(first, 1) - torch.softmax(second, 1)).square().sum(1).mean()


def feature_equivariance(undone: Tensor, reference: Tensor, present: Tensor) -> Tensor:
    r"""Distance of two estimates, the turned one turned back (L_equ of PUIR at feature level).

    .. math:: L = \overline{\big( \mathrm{LN}(g^{-1} X(g x)) - \mathrm{sg}(\mathrm{LN}(X(x))) \big)^2}

    Shape: estimates (B, C, F, *spatial); present (B, C) bool. The mean is over modalities that are present, then over
    samples; those without any add 0.
    """
    difference = normalised(undone, 2) - normalised(reference, 2).detach()
    mask = present.view(*present.shape, *[1] * (difference.ndim - 2))
    distance = torch.where(mask, difference, 0).square().flatten(2).mean(2)
    return (distance.sum(1) / present.sum(1).clamp(min=1)).mean()
