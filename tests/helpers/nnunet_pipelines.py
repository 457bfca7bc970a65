"""nnU-Net's own training transforms for small patches, in 2-D, 3-D, and 3-D with in-plane geometry."""

import numpy as np
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

CASES = {
    "3d": {"patch": (12, 16, 20), "dummy": False},
    "2d": {"patch": (24, 20), "dummy": False},
    "dummy 2d": {"patch": (6, 24, 24), "dummy": True},
}
SCALES = {3: [[1, 1, 1], [0.5, 0.5, 0.5]], 2: [[1, 1], [0.5, 0.5]]}


def stock(patch, dummy, certain=True, mask=None, **kwargs):
    """nnU-Net's own pipeline; `certain` makes each of its random transforms happen every time."""
    limit = np.pi if dummy else np.pi / 6
    pipeline = nnUNetTrainer.get_training_transforms(
        patch, (-limit, limit), SCALES[len(patch)], tuple(range(len(patch))), dummy, use_mask_for_norm=mask, **kwargs
    )
    if certain:
        for transform in pipeline.transforms:
            if isinstance(transform, RandomTransform):
                transform.apply_probability = 1
            if isinstance(transform, SpatialTransform):
                transform.p_rotation = transform.p_scaling = 1
    for transform in pipeline.transforms:
        if hasattr(getattr(transform, "transform", None), "benchmark"):
            transform.transform.benchmark = False  # a timing decides there, which no seed repeats
    return pipeline
