"""Two intensity views and a clean view of one patch, out of nnU-Net's own training transforms."""

from typing import Any, NamedTuple

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

from nnunet_invariance.errors import UnsupportedConfigurationError

GEOMETRY = (Convert3DTo2DTransform, SpatialTransform, Convert2DTo3DTransform, MirrorTransform)
PARTS = ("geometry", "intensity", "masking", "labels")


class Views(NamedTuple):
    """The views of a batch; position (z, y, x) is the same place in all of them.

    Attributes:
        first, second: (B, C, *spatial), two independent draws of the intensity transforms.
        clean: (B, C, *spatial), no intensity transform.
        valid_mask: (B, 1, *spatial), 1 in the image, 0 in padding and where nnU-Net's nonzero mask is off.
    """

    first: Tensor
    second: Tensor
    clean: Tensor
    valid_mask: Tensor


def split_views(data: Tensor, channels: int) -> Views:
    """Take apart what :class:`MultiView` has joined: (B, 3 * ``channels`` + 1, *spatial)."""
    return Views(*data.split((channels, channels, channels, 1), dim=1))


class MultiView(BasicTransform):
    """nnU-Net's pipeline with its intensity part run twice over one geometry.

    The pipeline is cut into geometry, intensity, masking and label transforms, each in its own order. The image
    (C, ...) becomes (3C + 1, ...): both views, the clean view, and content. nnU-Net's data loader keeps nothing but the
    image and the segmentation, hence one tensor. Content is read from the segmentation after the geometry: there, and
    only until the label transforms begin, -1 marks exactly the voxels that the loader or the rotation padded and those
    outside the nonzero mask.

    Mirroring comes before the intensity transforms here (nnU-Net: after them). It commutes with them in distribution.

    Args:
        pipeline: what ``nnUNetTrainer.get_training_transforms`` returns, without a cascade.
        channels: C, where an image may be (2C, ...): the second half then makes the second view. All by default.
        second: False puts the clean view in place of a second draw, where nobody looks at one.

    Raises:
        UnsupportedConfigurationError: the pipeline holds a transform that cannot be placed, or another order.
    """

    def __init__(self, pipeline: ComposeTransforms, channels: int | None = None, second: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.geometry, self.intensity, self.masking, self.labels = _partition(pipeline)
        nothing = ComposeTransforms([])
        self.draws = (self.intensity, self.intensity if second else nothing, nothing)

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Transform one sample: ``image`` (C, *spatial) float, ``segmentation`` (S, *spatial) integer."""
        sample = self.geometry(**data_dict)
        count = self.channels or len(sample["image"])
        own, other = sample["image"][:count], sample["image"][-count:]
        # Several transforms work in place, so each view starts from a copy.
        images = (own, other, own)
        views = [
            self.masking(**part(**{**sample, "image": image.clone()}))["image"]
            for part, image in zip(self.draws, images, strict=True)
        ]
        content = (sample["segmentation"][:1] >= 0).to(views[0].dtype)
        return self.labels(**{**sample, "image": torch.cat((*views, content))})


def _partition(pipeline: ComposeTransforms) -> list[ComposeTransforms]:
    """The four parts, in the order of :data:`PARTS`."""
    parts: dict[str, list[BasicTransform]] = {part: [] for part in PARTS}
    reached = 0
    for transform in pipeline.transforms:
        place = PARTS.index(_part(transform, pipeline))
        mirrored_early = isinstance(transform, MirrorTransform) and reached < PARTS.index("labels")
        if place < reached and not mirrored_early:
            raise _unknown(transform, pipeline, f"comes after the {PARTS[reached]} transforms")
        parts[PARTS[place]].append(transform)
        reached = max(reached, place)
    return [ComposeTransforms(parts[part]) for part in PARTS]


def _part(transform: BasicTransform, pipeline: ComposeTransforms) -> str:
    if isinstance(transform, GEOMETRY):
        return "geometry"
    if isinstance(transform, MaskImageTransform):
        return "masking"
    if isinstance(transform, SegOnlyTransform):
        return "labels"
    inner = transform.transform if isinstance(transform, RandomTransform) else transform
    if isinstance(inner, ImageOnlyTransform):
        return "intensity"
    raise _unknown(transform, pipeline, "changes neither geometry, intensity nor labels alone")


def _unknown(transform: BasicTransform, pipeline: ComposeTransforms, reason: str) -> UnsupportedConfigurationError:
    names = ", ".join(type(getattr(t, "transform", t)).__name__ for t in pipeline.transforms)
    name = type(getattr(transform, "transform", transform)).__name__
    return UnsupportedConfigurationError(
        f"Two views cannot be made out of this augmentation pipeline: {name} {reason}. Found: {names}. Expected "
        'nnU-Net\'s own training transforms without a cascade. Set "aux": false in the plans block '
        '"nnunet_invariance" to train with one view.'
    )
