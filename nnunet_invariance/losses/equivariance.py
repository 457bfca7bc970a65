"""Equivariance: the output for a transformed image, transformed back, equals the output for the image itself."""

import torch
from torch import Tensor

from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.losses.base import Loss, check_dimensions, check_shape
from nnunet_invariance.losses.modality_invariance import normalize_channels


class OutputEquivarianceLoss(Loss):
    r"""Squared distance of two segmentations (L_equ of PUIR at the level of outputs, arXiv 2411.06106).

    .. math:: L = \overline{\big| p(g^{-1} y(g x)) - \mathrm{sg}(p(y(x))) \big|^2}, \quad p = \mathrm{softmax}

    for a symmetry g, summed over classes and averaged over voxels and samples.

    >>> logits = torch.zeros(1, 3, 4, 4, 4)
    >>> OutputEquivarianceLoss()(logits, logits)
    tensor(0.)

    Args:
        multilabel: p is the sigmoid, for regions that may overlap, and the loss is also averaged over channels.
    """

    def __init__(self, multilabel: bool = False) -> None:
        super().__init__()
        self.multilabel = multilabel

    def forward(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """The loss in float32 or better.

        Shape:
            outputs: logits (B, K, *spatial) for the transformed image, transformed back.
            reference: logits of the same shape for the image itself; they get no gradient.
            Returns a scalar in [0, 2].

        Raises:
            ShapeError: the shapes do not agree.
        """
        check_dimensions("outputs", outputs, 2, "(B, K, *spatial)")
        check_shape("reference", reference, outputs.shape, "(B, K, *spatial) of 'outputs'")
        first, second = at_least_float32(outputs), at_least_float32(reference).detach()
        if self.multilabel:
            return (first.sigmoid() - second.sigmoid()).square().mean()
        return (torch.softmax(first, 1) - torch.softmax(second, 1)).square().sum(1).mean()


class FeatureEquivarianceLoss(Loss):
    r"""Squared distance of two representations (L_equ of PUIR at the level of features, arXiv 2411.06106).

    .. math:: L = \overline{\big( \mathrm{LN}(g^{-1} X(g x)) - \mathrm{sg}(\mathrm{LN}(X(x))) \big)^2}

    for a symmetry g, with layer norm over channels.

    >>> estimates = torch.rand(1, 2, 8, 4, 4, 4)
    >>> FeatureEquivarianceLoss()(3 * estimates, estimates, torch.ones(1, 2, dtype=torch.bool)).item() < 1e-6
    True
    """

    def forward(self, estimates: Tensor, reference: Tensor, present: Tensor) -> Tensor:
        """The loss in float32 or better, at least 0.

        Shape:
            estimates: (B, C, F, *spatial), one per modality, of the transformed image, transformed back.
            reference: estimates of the same shape of the image itself; they get no gradient.
            present: (B, C) bool, the modalities that the sample has.
            Returns a scalar: the mean over present modalities, then over samples. Samples without any add 0.

        Raises:
            ShapeError: the shapes do not agree.
        """
        check_dimensions("estimates", estimates, 3, "(B, C, F, *spatial)")
        check_shape("reference", reference, estimates.shape, "(B, C, F, *spatial) of 'estimates'")
        check_shape("present", present, estimates.shape[:2], "(B, C) of 'estimates'")
        difference = normalize_channels(estimates, 2) - normalize_channels(reference, 2).detach()
        mask = present.view(*present.shape, *[1] * (difference.ndim - 2))
        distance = torch.where(mask, difference, 0).square().flatten(2).mean(2)
        return (distance.sum(1) / present.sum(1).clamp(min=1)).mean()
