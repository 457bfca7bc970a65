"""Affine alignment with SimpleITK, by mutual information."""

import logging
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import SimpleITK as sitk

from nnunet_invariance.errors import VolumeError

__all__ = ["align_affine", "mutual_information", "overlap", "shrink_factors"]

AnyTransform = TypeVar("AnyTransform", bound=sitk.Transform)

logger = logging.getLogger(__name__)

BINS = 32  # of the joint histogram
COARSEST = 24  # minimum number of voxels along the shortest axis at the coarsest level
ITERATIONS = 80  # maximum per level
STRETCH = 1.5  # largest plausible scale factor in any direction; the smallest one is its inverse
LOST = 0.25  # largest plausible fraction of the initial overlap that the alignment loses
SHARE = 0.5  # fraction of the voxels that are sampled for the metric


def align_affine(
    fixed: sitk.Image,
    moving: sitk.Image,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    seed: int = 0,
) -> sitk.AffineTransform:
    """Align rigidly, then affinely, over up to three resolutions each; maps points of ``fixed`` to ``moving``, in mm.

    If the centre of the fixed image lies inside the moving image, the positions in the headers are the starting point;
    otherwise the image centres are aligned first. Mutual information can be largest at a wrong, small overlap: if the
    result loses more than :data:`LOST` of the overlap or scales by more than :data:`STRETCH`, it is discarded with a
    warning and the starting position is returned.

    Raises:
        VolumeError: the overlap of the images is too small to compute mutual information.
    """
    centre = fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()])
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter(centre)
    index = moving.TransformPhysicalPointToIndex(centre)
    if not all(0 <= i < n for i, n in zip(index, moving.GetSize(), strict=True)):
        other = moving.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in moving.GetSize()])
        rigid.SetTranslation([m - f for m, f in zip(other, centre, strict=True)])
    start = _as_affine(rigid)
    found = _as_affine(_optimise(rigid, fixed, moving, fixed_mask, moving_mask, seed))
    found = _optimise(found, fixed, moving, fixed_mask, moving_mask, seed)
    lost = 1 - overlap(found, fixed, moving) / max(overlap(start, fixed, moving), 1e-6)
    scales = np.linalg.svd(np.reshape(found.GetMatrix(), (3, 3)), compute_uv=False)
    if lost > LOST or scales.max() > STRETCH or scales.min() < 1 / STRETCH:
        found_out = f"it loses {max(lost, 0):.0%} of the overlap and scales by {scales.min():.2f} to {scales.max():.2f}"
        logger.warning(f"affine alignment discarded: {found_out}; the images keep their starting position")
        return start
    return found


def overlap(transform: sitk.Transform, fixed: sitk.Image, moving: sitk.Image) -> float:
    """Fraction of the voxels of the fixed image that ``transform`` maps into the moving image."""
    whole = sitk.Image(moving.GetSize(), sitk.sitkUInt8) + 1
    whole.CopyInformation(moving)
    inside = sitk.Resample(whole, fixed, transform, sitk.sitkNearestNeighbor, 0)
    return float(sitk.GetArrayViewFromImage(inside).mean())


def _as_affine(rigid: sitk.Euler3DTransform) -> sitk.AffineTransform:
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    return affine


def mutual_information(
    fixed: sitk.Image, moving: sitk.Image, fixed_mask: sitk.Image | None, moving_mask: sitk.Image | None, seed: int
) -> sitk.ImageRegistrationMethod:
    """Configure multi-resolution registration with Mattes' mutual information; the caller sets the optimiser."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(SHARE, seed + 1)  # a seed of 0 would mean the current time
    method.SetInterpolator(sitk.sitkLinear)
    factors = shrink_factors(fixed.GetSize())
    method.SetShrinkFactorsPerLevel(factors)
    method.SetSmoothingSigmasPerLevel(factors)  # also at the finest level, to suppress noise
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    if fixed_mask is not None:
        method.SetMetricFixedMask(fixed_mask)
    if moving_mask is not None:
        method.SetMetricMovingMask(moving_mask)
    return method


def shrink_factors(size: Sequence[int]) -> list[int]:
    """Shrink factors 4, 2, 1, except those that leave fewer than :data:`COARSEST` voxels along the shortest axis.

    >>> shrink_factors((64, 64, 64))
    [2, 1]
    """
    return [factor for factor in (4, 2) if min(size) // factor >= COARSEST] + [1]


def _optimise(
    start: AnyTransform,
    fixed: sitk.Image,
    moving: sitk.Image,
    fixed_mask: sitk.Image | None,
    moving_mask: sitk.Image | None,
    seed: int,
) -> AnyTransform:
    method = mutual_information(fixed, moving, fixed_mask, moving_mask, seed)
    method.SetOptimizerAsRegularStepGradientDescent(0.5, 1e-3, ITERATIONS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[-1]
        msg = f"Affine alignment failed: {reason}. The two images, inside their masks, must overlap and have contrast."
        raise VolumeError(f"{msg} Check the headers, or align them first and use --no-affine.") from error
    return start
