"""Displacement fields in millimetres: composition with the affine map, and what they do to volume."""

import numpy as np
import SimpleITK as sitk


def to_field(u: np.ndarray, grid: sitk.Image) -> sitk.Image:
    """Displacement (3, z, y, x) in voxels of ``grid``, axes z, y, x, as a vector image in mm (x, y, z of the world)."""
    direction = np.reshape(grid.GetDirection(), (3, 3))
    vectors = np.moveaxis(u[::-1], 0, -1) * grid.GetSpacing() @ direction.T
    field = sitk.GetImageFromArray(vectors.astype(np.float64), isVector=True)
    field.CopyInformation(grid)
    return field


def compose(field: sitk.Image, affine: sitk.Transform, reference: sitk.Image) -> sitk.Image:
    """The whole way x -> A(x + u(x)) as one field on the grid of ``reference``: A(x + u(x)) - x, mm.

    ``u`` is interpolated linearly; beyond the outermost voxel centres of its grid it goes on as it was there.
    """
    padded = sitk.ZeroFluxNeumannPad(field, [2] * 3, [2] * 3)
    deformation = sitk.DisplacementFieldTransform(sitk.Image(padded))  # the transform takes its image over
    whole = sitk.CompositeTransform([affine, deformation])  # the last is applied first
    return sitk.TransformToDisplacementField(
        whole, sitk.sitkVectorFloat64, reference.GetSize(), reference.GetOrigin(), reference.GetSpacing(),
        reference.GetDirection(),
    )  # fmt: skip


def warp(moving: sitk.Image, field: sitk.Image, interpolator: int = sitk.sitkLinear) -> sitk.Image:
    """The moving image on the grid of the field; outside of it, its smallest value."""
    background = float(sitk.GetArrayViewFromImage(moving).min())
    transform = sitk.DisplacementFieldTransform(sitk.Image(field))
    return sitk.Resample(moving, field, transform, interpolator, background, moving.GetPixelID())


def jacobian(field: sitk.Image) -> np.ndarray:
    """Determinant of the Jacobian of x -> x + u(x), (z, y, x)."""
    direction = np.reshape(field.GetDirection(), (3, 3))
    # ITK takes derivatives along the image's axes, so the vectors must be told along them too.
    along = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(field) @ direction, isVector=True)
    along.SetSpacing(field.GetSpacing())
    return sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(along))


def jacobian_statistics(determinant: np.ndarray) -> dict[str, float]:
    """Share of folded voxels (determinant <= 0), mean, extremes and quantiles, and the deviation of its logarithm."""
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
