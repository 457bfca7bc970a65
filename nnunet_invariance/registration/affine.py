"""Affine alignment by mutual information, SimpleITK's."""

from collections.abc import Sequence

import SimpleITK as sitk

from nnunet_invariance.errors import VolumeError

BINS = 32
COARSEST = 24  # voxels of the shortest side at the coarsest level
ITERATIONS = 150  # at a level, at most
SHARE = 0.5  # of the voxels, drawn at random


def align_affine(
    fixed: sitk.Image,
    moving: sitk.Image,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    seed: int = 0,
) -> sitk.AffineTransform:
    """Points of ``fixed`` to points of ``moving``, mm: rigid, then affine, each over three resolutions.

    The headers are believed where the centre of the fixed image lies inside of the moving one; else the centres are
    laid on each other first.

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
    rigid = _optimise(rigid, fixed, moving, fixed_mask, moving_mask, seed)
    affine = sitk.AffineTransform(3)
    affine.SetCenter(centre)
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    return _optimise(affine, fixed, moving, fixed_mask, moving_mask, seed)


def mutual_information(
    fixed: sitk.Image, moving: sitk.Image, fixed_mask: sitk.Image | None, moving_mask: sitk.Image | None, seed: int
) -> sitk.ImageRegistrationMethod:
    """SimpleITK's registration with Mattes' mutual information over a pyramid; the optimiser is left to the caller."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(SHARE, seed + 1)  # 0 would be the clock
    method.SetInterpolator(sitk.sitkLinear)
    factors = shrink_factors(fixed.GetSize())
    method.SetShrinkFactorsPerLevel(factors)
    method.SetSmoothingSigmasPerLevel([factor / 2 if factor > 1 else 0 for factor in factors])
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
    start: sitk.Transform,
    fixed: sitk.Image,
    moving: sitk.Image,
    fixed_mask: sitk.Image | None,
    moving_mask: sitk.Image | None,
    seed: int,
) -> sitk.Transform:
    method = mutual_information(fixed, moving, fixed_mask, moving_mask, seed)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, ITERATIONS, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[-1]
        msg = f"Affine alignment failed: {reason}. The two images, inside their masks, must overlap and have contrast."
        raise VolumeError(f"{msg} Check the headers, or align them first and use --no-affine.") from error
    return start
