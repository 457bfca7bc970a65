"""Augmentation: views of one patch, symmetries of a patch, masks, and style interventions.

>>> import torch
>>> from nnunet_invariance.augmentation import interventions, symmetries
>>> interventions.GIN()(torch.rand(1, 1, 8, 8)).shape
torch.Size([1, 1, 8, 8])
"""

from typing import TYPE_CHECKING

from nnunet_invariance.common.lazy import lazy_exports

if TYPE_CHECKING:
    from nnunet_invariance.augmentation.cube_group import apply_symmetry as apply_symmetry
    from nnunet_invariance.augmentation.cube_group import invert_symmetry as invert_symmetry
    from nnunet_invariance.augmentation.cube_group import sample_symmetries as sample_symmetries
    from nnunet_invariance.augmentation.cube_group import symmetries as symmetries
    from nnunet_invariance.augmentation.device_views import apply_affine as apply_affine
    from nnunet_invariance.augmentation.device_views import apply_intensity as apply_intensity
    from nnunet_invariance.augmentation.device_views import augment_affine as augment_affine
    from nnunet_invariance.augmentation.device_views import sample_affine as sample_affine
    from nnunet_invariance.augmentation.device_views import sample_intensity as sample_intensity
    from nnunet_invariance.augmentation.masking import sample_block_mask as sample_block_mask
    from nnunet_invariance.augmentation.masking import sample_tube_mask as sample_tube_mask
    from nnunet_invariance.augmentation.views import MultiView as MultiView

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "cube_group": ("apply_symmetry", "invert_symmetry", "sample_symmetries", "symmetries"),
        "device_views": ("apply_affine", "apply_intensity", "augment_affine", "sample_affine", "sample_intensity"),
        "masking": ("sample_block_mask", "sample_tube_mask"),
        "views": ("MultiView",),
    },
)
