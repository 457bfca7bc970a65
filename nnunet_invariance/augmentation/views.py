"""Two intensity views and a clean view of one patch, made by nnU-Net's own training transforms."""

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
REMEDY = 'Set "aux": false in the plans block "nnunet_invariance" to train with one view.'


class Parts(NamedTuple):
    """The parts of nnU-Net's training transforms, in this order."""

    geometry: ComposeTransforms
    intensity: ComposeTransforms
    masking: ComposeTransforms
    labels: ComposeTransforms


class Views(NamedTuple):
    """The views of a batch; they share one geometry, so that voxels correspond.

    Attributes:
        first, second: (B, C, *spatial), two independent applications of the intensity transforms.
        clean: (B, C, *spatial), without intensity transforms.
        valid_mask: (B, 1, *spatial), 1 in the image, 0 in padding and outside nnU-Net's nonzero mask.
    """

    first: Tensor
    second: Tensor
    clean: Tensor
    valid_mask: Tensor


def split_views(data: Tensor, channels: int) -> Views:
    """Split the channels that :class:`MultiView` has joined: (B, 3 * ``channels`` + 1, *spatial)."""
    return Views(*data.split((channels, channels, channels, 1), dim=1))


class MultiView(BasicTransform):
    """nnU-Net's pipeline with two applications of its intensity transforms after one geometry.

    The pipeline is split into geometry, intensity, masking and label transforms, each in its own order. The image
    (C, ...) becomes (3C + 1, ...): both views, the clean view, and the valid mask. They are one tensor because
    nnU-Net's data loader keeps only the image and the segmentation. The valid mask is read from the segmentation after
    the geometry: only there, -1 marks exactly the voxels that the loader or the rotation padded and those outside the
    nonzero mask.

    Mirroring runs before the intensity transforms (nnU-Net: after them); it commutes with them in distribution.

    Args:
        pipeline: returned by ``nnUNetTrainer.get_training_transforms``, without a cascade.
        channels: C, if an image can be (2C, ...); the second half is then the input of the second view. Default: all.
        second: False uses the clean view as the second one, for trainers that do not need it.

    >>> view = MultiView(ComposeTransforms([]), channels=1)
    >>> sample = view(image=torch.ones(1, 4, 4, 4), segmentation=torch.zeros(1, 4, 4, 4))
    >>> sample["image"].shape  # two views, the clean view and the valid mask
    torch.Size([4, 4, 4, 4])

    Raises:
        UnsupportedConfigurationError: the pipeline has an unknown transform or another order.
    """

    def __init__(self, pipeline: ComposeTransforms, channels: int | None = None, second: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.views = 2 if second else 1
        self.parts = partition(pipeline, REMEDY)
        self.geometry, self.intensity, self.masking, self.labels = self.parts
        nothing = ComposeTransforms([])
        self.view_transforms = (self.intensity, self.intensity if second else nothing, nothing)

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Transform one sample: ``image`` (C, *spatial) float, ``segmentation`` (S, *spatial) integer."""
        sample = self.geometry(**data_dict)
        count = self.channels or len(sample["image"])
        own, other = sample["image"][:count], sample["image"][-count:]
        # Several transforms change their input, so each view starts from a copy.
        images = (own, other, own)
        views = [
            self.masking(**part(**{**sample, "image": image.clone()}))["image"]
            for part, image in zip(self.view_transforms, images, strict=True)
        ]
        valid_mask = (sample["segmentation"][:1] >= 0).to(views[0].dtype)
        return self.labels(**{**sample, "image": torch.cat((*views, valid_mask))})


def partition(pipeline: ComposeTransforms, remedy: str) -> Parts:
    """Split nnU-Net's training transforms into parts, each in its own order.

    Args:
        pipeline: the transforms.
        remedy: last sentence of the error message.

    Raises:
        UnsupportedConfigurationError: the pipeline has an unknown transform or another order.
    """
    parts: dict[str, list[BasicTransform]] = {part: [] for part in Parts._fields}
    reached = 0
    for transform in pipeline.transforms:
        part = _part(transform)
        if part is None:
            reason = "changes neither geometry, intensity nor labels alone"
            raise _unknown(transform, pipeline, reason, remedy)
        number = Parts._fields.index(part)
        mirrored_early = isinstance(transform, MirrorTransform) and reached < Parts._fields.index("labels")
        if number < reached and not mirrored_early:
            raise _unknown(transform, pipeline, f"comes after the {Parts._fields[reached]} transforms", remedy)
        parts[part].append(transform)
        reached = max(reached, number)
    return Parts(*(ComposeTransforms(transforms) for transforms in parts.values()))


def _part(transform: BasicTransform) -> str | None:
    if isinstance(transform, GEOMETRY):
        return "geometry"
    if isinstance(transform, MaskImageTransform):
        return "masking"
    if isinstance(transform, SegOnlyTransform):
        return "labels"
    inner = transform.transform if isinstance(transform, RandomTransform) else transform
    return "intensity" if isinstance(inner, ImageOnlyTransform) else None


def _unknown(
    transform: BasicTransform, pipeline: ComposeTransforms, reason: str, remedy: str
) -> UnsupportedConfigurationError:
    names = ", ".join(type(getattr(t, "transform", t)).__name__ for t in pipeline.transforms)
    name = type(getattr(transform, "transform", transform)).__name__
    return UnsupportedConfigurationError(
        f"The augmentation pipeline cannot be split into its parts: {name} {reason}. Found: {names}. Expected "
        f"nnU-Net's own training transforms without a cascade. {remedy}"
    )
