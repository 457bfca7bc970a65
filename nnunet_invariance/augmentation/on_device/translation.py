"""The device form of nnU-Net's training transforms, with their own probabilities and ranges."""

from collections.abc import Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

from nnunet_invariance.augmentation.missing_modalities import ZeroMissingChannels
from nnunet_invariance.augmentation.on_device.augmentation import DeviceAugmentation
from nnunet_invariance.augmentation.on_device.draws import Scalar
from nnunet_invariance.augmentation.on_device.geometry import Geometry
from nnunet_invariance.augmentation.on_device.intensity import (
    Blur,
    Brightness,
    Contrast,
    Gamma,
    LowResolution,
    Noise,
    RowTransform,
)
from nnunet_invariance.augmentation.on_device.labels import OUTSIDE, Targets
from nnunet_invariance.augmentation.views import MultiView, partition
from nnunet_invariance.errors import UnsupportedConfigurationError

REMEDY = 'Set "augmentation": "nnunet" in the plans block "nnunet_invariance".'
#: The settings of nnU-Net's transforms that the device form supports; settings that are not listed are arbitrary.
SUPPORTED: dict[type[BasicTransform], dict[str, Any]] = {
    SpatialTransform: {
        "random_crop": False,
        "p_elastic_deform": 0,
        "p_rot_per_axis": 1,
        "p_synchronize_scaling_across_axes": 1,
        "mode_seg": "bilinear",
        "border_mode_seg": "constant",
        "padding_value_seg": OUTSIDE,
        "mode_image": "bilinear",
        "padding_mode_image": "zeros",
        "align_corners": False,
        "seg_tiebreak": "nearest",
    },
    GaussianNoiseTransform: {"synchronize_channels": True},
    GaussianBlurTransform: {"synchronize_channels": False, "synchronize_axes": False},
    MultiplicativeBrightnessTransform: {"synchronize_channels": False},
    ContrastTransform: {"synchronize_channels": False, "preserve_range": True},
    SimulateLowResolutionTransform: {"synchronize_channels": False, "synchronize_axes": True, "allowed_channels": None},
    GammaTransform: {"synchronize_channels": False, "p_retain_stats": 1},
    MaskImageTransform: {"channel_idx_in_seg": 0, "set_outside_to": 0},
    RemoveLabelTansform: {"segmentation_channels": None},
    ConvertSegmentationToRegionsTransform: {"channel_in_seg": 0},
    DownsampleSegForDSTransform: {},
}


class RawPatches(BasicTransform):
    """What the data loader does with a patch if the device augments: nothing.

    Args:
        channels: give all patches twice as many channels; a stored view has them already, and other patches are
            repeated. None: leave the channels alone.

    >>> RawPatches(channels=1)(image=torch.ones(1, 4, 4))["image"].shape
    torch.Size([2, 4, 4])
    """

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        self.channels = channels

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Return the patch."""
        if self.channels is None:
            return data_dict
        image = data_dict["image"]
        return {**data_dict, "image": torch.cat((image[: self.channels], image[-self.channels :]))}


def device_form(transform: BasicTransform, labels: Sequence[int]) -> DeviceAugmentation:
    """Make the device form of a training pipeline.

    Args:
        transform: nnU-Net's training transforms, possibly in :class:`MultiView` and :class:`ZeroMissingChannels`.
        labels: all values of the segmentation, the ignore label included.

    Raises:
        UnsupportedConfigurationError: a transform or a setting of it has no device form.
    """
    zero_missing = isinstance(transform, ZeroMissingChannels)
    pipeline: Any = transform.pipeline if isinstance(transform, ZeroMissingChannels) else transform
    with_views = isinstance(pipeline, MultiView)
    parts = pipeline.parts if with_views else partition(pipeline, REMEDY)
    masks = [_checked(mask) for mask in parts.masking.transforms]
    return DeviceAugmentation(
        geometry=_geometry(parts.geometry, labels),
        intensity=tuple(_row_transform(part) for part in parts.intensity.transforms),
        masked_channels=tuple(channel for mask in masks for channel in mask.apply_to_channels),
        targets=_targets(parts.labels),
        views=pipeline.views if with_views else 0,
        channels=pipeline.channels if with_views else None,
        zero_missing=zero_missing,
    )


def _geometry(part: ComposeTransforms, labels: Sequence[int]) -> Geometry:
    found: dict[type, Any] = {type(transform): transform for transform in part.transforms}
    if SpatialTransform not in found:
        raise UnsupportedConfigurationError(f"The augmentation pipeline has no SpatialTransform. {REMEDY}")
    spatial: Any = _checked(found[SpatialTransform])
    mirror = found.get(MirrorTransform)
    return Geometry(
        patch_size=tuple(map(int, spatial.patch_size)),
        in_plane=Convert3DTo2DTransform in found,
        rotation=_range(spatial, "rotation"),
        p_rotation=spatial.p_rotation,
        scaling=_range(spatial, "scaling"),
        p_scaling=spatial.p_scaling,
        mirror_axes=tuple(mirror.allowed_axes) if mirror else (),
        labels=tuple(labels),
    )


def _row_transform(outer: BasicTransform) -> RowTransform:
    certain = not isinstance(outer, RandomTransform)
    probability = 1.0 if certain else outer.apply_probability
    transform: Any = _checked(outer if certain else outer.transform)
    both = probability, float(transform.p_per_channel)
    if isinstance(transform, GaussianNoiseTransform):
        return Noise(*both, _range(transform, "noise_variance"))  # nnU-Net uses it as the standard deviation
    if isinstance(transform, GaussianBlurTransform):
        return Blur(*both, _range(transform, "blur_sigma"))
    if isinstance(transform, MultiplicativeBrightnessTransform):
        return Brightness(*both, _scalar(transform, "multiplier_range"))
    if isinstance(transform, ContrastTransform):
        return Contrast(*both, _scalar(transform, "contrast_range"))
    if isinstance(transform, SimulateLowResolutionTransform):
        return LowResolution(*both, _range(transform, "scale"), tuple(transform.ignore_axes or ()))
    if transform.p_invert_image not in (0, 1):
        raise _unsupported(transform, "p_invert_image", "0 or 1")
    return Gamma(*both, _scalar(transform, "gamma"), bool(transform.p_invert_image))


def _targets(part: ComposeTransforms) -> Targets:
    replaced: list[tuple[int, int]] = []
    regions = scales = None
    for transform in part.transforms:
        known: Any = _checked(transform)
        if isinstance(known, RemoveLabelTansform):
            replaced.append((known.label_value, known.set_to))
        elif isinstance(known, ConvertSegmentationToRegionsTransform):
            regions = tuple(tuple(int(label) for label in region.tolist()) for region in known.regions)
        else:
            scales = tuple(tuple(float(factor) for factor in scale) for scale in known.ds_scales)
    return Targets(tuple(replaced), regions, scales)


def _checked(transform: BasicTransform) -> Any:
    """Return a transform that has a device form, with all its settings.

    Raises:
        UnsupportedConfigurationError
    """
    settings = SUPPORTED.get(type(transform))
    if settings is None:
        raise UnsupportedConfigurationError(
            f'{type(transform).__name__} has no device form ("augmentation": "device"). {REMEDY}'
        )
    for name, expected in settings.items():
        if vars(transform).get(name, expected) != expected:
            raise _unsupported(transform, name, repr(expected))
    return transform


def _scalar(transform: Any, name: str) -> Scalar:
    """A range, or nnU-Net's distribution of factors."""
    value = getattr(transform, name)
    return value if isinstance(value, BGContrast) else _range(transform, name)


def _range(transform: Any, name: str) -> tuple[float, float]:
    value = getattr(transform, name)
    value = [value, value] if isinstance(value, int | float) else value
    if not isinstance(value, tuple | list):
        raise _unsupported(transform, name, "a range of two numbers")
    low, high = value
    return float(low), float(high)


def _unsupported(transform: BasicTransform, name: str, expected: str) -> UnsupportedConfigurationError:
    return UnsupportedConfigurationError(
        f"{type(transform).__name__} has {name}={getattr(transform, name)!r}, which has no device form "
        f'("augmentation": "device"); expected {expected}. {REMEDY}'
    )
