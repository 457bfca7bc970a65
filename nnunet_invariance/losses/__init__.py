"""Losses as plain modules on tensors, one file per loss.

>>> import torch
>>> from nnunet_invariance.losses import PatchInfoNCE
>>> PatchInfoNCE(temperature=0.2)
PatchInfoNCE(temperature=0.2, negatives='all_positions', label_mask='none')
"""

from typing import TYPE_CHECKING

from nnunet_invariance.common.lazy import lazy_exports

if TYPE_CHECKING:
    from nnunet_invariance.losses.consistency import ConsistencyLoss as ConsistencyLoss
    from nnunet_invariance.losses.decomposition import DecompositionLoss as DecompositionLoss
    from nnunet_invariance.losses.dense_info_nce import DenseInfoNCE as DenseInfoNCE
    from nnunet_invariance.losses.equivariance import FeatureEquivarianceLoss as FeatureEquivarianceLoss
    from nnunet_invariance.losses.equivariance import OutputEquivarianceLoss as OutputEquivarianceLoss
    from nnunet_invariance.losses.hard_negative_info_nce import HardNegativeInfoNCE as HardNegativeInfoNCE
    from nnunet_invariance.losses.individual_contrast import IndividualContrast as IndividualContrast
    from nnunet_invariance.losses.info_nce import PatchInfoNCE as PatchInfoNCE
    from nnunet_invariance.losses.info_nce import SupervisedInfoNCE as SupervisedInfoNCE
    from nnunet_invariance.losses.masked_reconstruction import MaskedReconstructionLoss as MaskedReconstructionLoss
    from nnunet_invariance.losses.modality_invariance import ModalityInvarianceLoss as ModalityInvarianceLoss
    from nnunet_invariance.losses.self_distillation import SelfDistillationLoss as SelfDistillationLoss
    from nnunet_invariance.losses.subset_distillation import SubsetDistillationLoss as SubsetDistillationLoss

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "consistency": ("ConsistencyLoss",),
        "decomposition": ("DecompositionLoss",),
        "dense_info_nce": ("DenseInfoNCE",),
        "equivariance": ("FeatureEquivarianceLoss", "OutputEquivarianceLoss"),
        "hard_negative_info_nce": ("HardNegativeInfoNCE",),
        "individual_contrast": ("IndividualContrast",),
        "info_nce": ("PatchInfoNCE", "SupervisedInfoNCE"),
        "masked_reconstruction": ("MaskedReconstructionLoss",),
        "modality_invariance": ("ModalityInvarianceLoss",),
        "self_distillation": ("SelfDistillationLoss",),
        "subset_distillation": ("SubsetDistillationLoss",),
    },
)
