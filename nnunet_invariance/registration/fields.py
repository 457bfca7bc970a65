"""Displacement fields in millimetres: composition with the affine transform, warping and Jacobian determinants."""

import numpy as np
import SimpleITK as sitk


def to_field(u: np.ndarray, grid: sitk.Image) -> sitk.Image:
    """Convert a displacement (3, z, y, x) in voxels of ``grid`` to a vector image in mm (world axes x, y, z)."""
    direction = np.reshape(grid.GetDirection(), (3, 3))
    vectors = np.moveaxis(u[::-1], 0, -1) * grid.GetSpacing() @ direction.T
    field = sitk.GetImageFromArray(vectors.astype(np.float64), isVector=True)
    field.CopyInformation(grid)
    return field


def compose(field: sitk.Image, affine: sitk.Transform, reference: sitk.Image) -> sitk.Image:
    """Compose displacement u and affine transform A to one field on the grid of ``reference``: A(x + u(x)) - x, in mm.

    ``u`` is interpolated linearly and extrapolated beyond its grid with the value of the nearest voxel.
    """
    padded = sitk.ZeroFluxNeumannPad(field, [2] * 3, [2] * 3)
    deformation = sitk.DisplacementFieldTransform(sitk.Image(padded))  # the transform takes ownership of its image
    whole = sitk.CompositeTransform([affine, deformation])  # the last transform is applied first
    return sitk.TransformToDisplacementField(
        whole, sitk.sitkVectorFloat64, reference.GetSize(), reference.GetOrigin(), reference.GetSpacing(),
        reference.GetDirection(),
    )  # fmt: skip


def warp(moving: sitk.Image, field: sitk.Image, interpolator: int = sitk.sitkLinear) -> sitk.Image:
    """Resample the moving image to the grid of the field; voxels outside the moving image get its minimum."""
    background = float(sitk.GetArrayViewFromImage(moving).min())
    transform = sitk.DisplacementFieldTransform(sitk.Image(field))
    return sitk.Resample(moving, field, transform, interpolator, background, moving.GetPixelID())


def jacobian(field: sitk.Image) -> np.ndarray:
    """Jacobian determinant (z, y, x) of x -> x + u(x)."""
    direction = np.reshape(field.GetDirection(), (3, 3))
    # ITK differentiates along the image axes, so the vectors must be expressed in these axes too.
    along = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(field) @ direction, isVector=True)
    along.SetSpacing(field.GetSpacing())
    return sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(along))


def jacobian_statistics(determinant: np.ndarray) -> dict[str, float]:
    """Fraction of folded voxels (determinant <= 0), mean, extremes, quantiles, and standard deviation of the logarithm.

    >>> jacobian_statistics(np.array([-1.0, 1.0, 1.0, 3.0]))["folded_share"]
    0.25
    """
    quantiles = np.quantile(determinant, (0.01, 0.5, 0.99))
    return {
        "folded_share": float((determinant <= 0).mean()),
        "mean": float(determinant.mean()),
        "minimum": float(determinant.min()),
        "quantile_01": float(quantiles[0]),
        "median": float(quantiles[1]),
        "quantile_99": float(quantiles[2]),
        "maximum": float(determinant.max()),
        "sd_of_log": float(np.log(np.clip(determinant, 1e-9, None)).std()),
    }
