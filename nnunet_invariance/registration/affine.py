"""Affine alignment by mutual information, SimpleITK's."""

import logging
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import SimpleITK as sitk

from nnunet_invariance.errors import VolumeError

__all__ = ["align_affine", "mutual_information", "overlap", "shrink_factors"]

AnyTransform = TypeVar("AnyTransform", bound=sitk.Transform)

logger = logging.getLogger(__name__)

BINS = 32
COARSEST = 24  # voxels of the shortest side at the coarsest level
ITERATIONS = 80  # at a level, at most
STRETCH = 1.5  # largest plausible scale along any direction, and its inverse the smallest
LOST = 0.25  # largest plausible share of what overlapped at the start and does not in the end
SHARE = 0.5  # of the voxels


def align_affine(
    fixed: sitk.Image,
    moving: sitk.Image,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    seed: int = 0,
) -> sitk.AffineTransform:
    """Points of ``fixed`` to points of ``moving``, mm: rigid, then affine, each over three resolutions.

    The headers are believed where the centre of the fixed image lies inside of the moving one; else the centres are
    laid on each other first. Mutual information can prefer a small overlap to the right one: a map that loses more than
    :data:`LOST` of the overlap, or scales by more than :data:`STRETCH`, is dropped for the position it started from,
    with a warning.

    Raises:
        VolumeError: the images have no overlap in which mutual information can be taken.
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
        logger.warning(f"affine alignment dropped: {found_out}; the images stay where their headers put them")
        return start
    return found


def overlap(transform: sitk.Transform, fixed: sitk.Image, moving: sitk.Image) -> float:
    """Share of the fixed image's voxels whose partners lie inside of the moving image."""
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
    """SimpleITK's registration with Mattes' mutual information over a pyramid; the optimiser is left to the caller."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(SHARE, seed + 1)  # 0 would be the clock
    method.SetInterpolator(sitk.sitkLinear)
    factors = shrink_factors(fixed.GetSize())
    method.SetShrinkFactorsPerLevel(factors)
    method.SetSmoothingSigmasPerLevel(factors)  # the finest level too: noise has mutual information of its own
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    if fixed_mask is not None:
        method.SetMetricFixedMask(fixed_mask)
    if moving_mask is not None:
        method.SetMetricMovingMask(moving_mask)
    return method


def shrink_factors(size: Sequence[int]) -> list[int]:
    """4, 2, 1, without those that leave fewer than :data:`COARSEST` voxels of the shortest side."""
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
