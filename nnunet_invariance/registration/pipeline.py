"""Registration of two image files: warped image, displacement field in mm, statistics and checkerboard."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from nnunet_invariance.common.image_files import write_image
from nnunet_invariance.common.json_files import write_json
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.registration.affine import align_affine
from nnunet_invariance.registration.checkerboard import write_checkerboard
from nnunet_invariance.registration.convex_adam import ConvexAdamOptions, convex_adam, library, mind_ssc
from nnunet_invariance.registration.fields import compose, jacobian, jacobian_statistics, to_field, warp
from nnunet_invariance.registration.network import FeatureNetwork, find_network_file, load_feature_network
from nnunet_invariance.registration.options import RegistrationOptions
from nnunet_invariance.registration.volumes import read_mask, read_volume, resample_to_grid, working_grid

__all__ = ["Pair", "deform", "read_pair", "register"]

CT_WINDOW = (-450.0, 450.0)  # HU


@dataclass(frozen=True)
class Pair:
    """Two images and their masks (None: no mask), each on its own grid.

    >>> Pair(sitk.Image(4, 4, 4, sitk.sitkFloat32), sitk.Image(8, 8, 8, sitk.sitkFloat32)).fixed.GetSize()
    (4, 4, 4)
    """

    fixed: sitk.Image
    moving: sitk.Image
    fixed_mask: sitk.Image | None = None
    moving_mask: sitk.Image | None = None


def register(
    fixed: str | os.PathLike,
    moving: str | os.PathLike,
    out: str | os.PathLike,
    options: RegistrationOptions | None = None,
    convex_adam_options: ConvexAdamOptions | None = None,
    *,
    weights: Path | None = None,
    fixed_mask: Path | None = None,
    moving_mask: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Register two image files and write the results into a folder.

    Writes ``warped.nii.gz``, ``displacement.nii.gz`` (in mm on the grid of the fixed image, including the affine
    transform, for SimpleITK's ``DisplacementFieldTransform``), ``checkerboard.png``, and ``registration.json``, whose
    content is returned.

    Args:
        fixed, moving: image files; ``moving`` is aligned with ``fixed``, which defines the grid of the result.
        out: output folder; it is created if it does not exist.
        options, convex_adam_options: settings; default: the published ones.
        weights: checkpoint of the feature network; default: see :func:`.network.find_network_file`.
        fixed_mask, moving_mask: mask files; only voxels above 0 are compared.
        device: device for features and ConvexAdam, ``"cpu"`` or ``"cuda"``.

    Raises:
        VolumeError, WeightsNotFoundError, WeightsIncompatibleError, MissingPackageError: an input, the feature network
            or the library ``convexadam`` cannot be used; nothing was written.
        OutputError: a file cannot be written.
    """
    options, adam = options or RegistrationOptions(), convex_adam_options or ConvexAdamOptions()
    fixed, moving, out = Path(fixed), Path(moving), Path(out)
    library()  # report a missing package, and below a spacing that is too coarse, before the work starts
    pair = read_pair(fixed, moving, fixed_mask, moving_mask, options.ct)
    working_spacing = working_grid(pair.fixed, options.spacing).GetSpacing()[0]
    weights = None if options.features == "mind" else find_network_file(weights)
    network = None if weights is None else load_feature_network(weights, torch.device(device))
    start = _affine_start(pair, options)
    field = deform(pair, start, network, options.features != "anatomix", adam, options.spacing, device)
    report = {
        **_names(fixed=fixed, moving=moving, weights=weights, fixed_mask=fixed_mask, moving_mask=moving_mask),
        **options.to_dict(),
        "affine": affine_matrix(start) if options.affine else None,
        "convex_adam": adam.to_dict(),
        "working_spacing_mm": round(working_spacing, 4),
        **_statistics(field),
    }
    _write_results(out, pair, warp(read_volume(moving), field), start, field, report)
    return report


def _affine_start(pair: Pair, options: RegistrationOptions) -> sitk.Transform:
    if options.affine:
        return align_affine(pair.fixed, pair.moving, pair.fixed_mask, pair.moving_mask)
    return sitk.AffineTransform(3)


def _names(**files: Path | None) -> dict[str, str | None]:
    return {role: None if file is None else str(file) for role, file in files.items()}


def _statistics(field: sitk.Image) -> dict[str, Any]:
    return {"displacement_mm": displacement_statistics(field), "jacobian": jacobian_statistics(jacobian(field))}


def _write_results(
    out: Path, pair: Pair, warped: sitk.Image, start: sitk.Transform, field: sitk.Image, report: dict[str, Any]
) -> None:
    write_image(out / "warped.nii.gz", warped)
    write_image(out / "displacement.nii.gz", sitk.Cast(field, sitk.sitkVectorFloat32))
    background = float(_values(pair.moving).min())
    before = sitk.Resample(pair.moving, pair.fixed, start, sitk.sitkLinear, background)
    write_checkerboard(out / "checkerboard.png", pair.fixed, before, warp(pair.moving, field))
    write_json(out / "registration.json", report)


def read_pair(fixed: Path, moving: Path, fixed_mask: Path | None, moving_mask: Path | None, ct: str) -> Pair:
    """Read and check both images and their masks; CT intensities are clipped to :data:`CT_WINDOW`.

    Args:
        fixed, moving: image files.
        fixed_mask, moving_mask: mask files, or None.
        ct: ``"none"``, or which images are CT: ``"fixed"``, ``"moving"`` or ``"both"``.

    Raises:
        VolumeError: a file cannot be used.
    """
    images = []
    for role, path in (("fixed", fixed), ("moving", moving)):
        image = read_volume(path)
        images.append(sitk.Clamp(image, image.GetPixelID(), *CT_WINDOW) if ct in (role, "both") else image)
    masks = [
        None if path is None else read_mask(path, image)
        for path, image in zip((fixed_mask, moving_mask), images, strict=True)
    ]
    return Pair(images[0], images[1], masks[0], masks[1])


def deform(
    pair: Pair,
    start: sitk.Transform,
    network: FeatureNetwork | None,
    use_mind: bool,
    options: ConvexAdamOptions,
    spacing: float | None = None,
    device: str = "cpu",
) -> sitk.Image:
    """Displacement from the fixed to the moving image in mm, including ``start``, on the grid of the fixed image."""
    grid = working_grid(pair.fixed, spacing)
    identity = sitk.Transform(3, sitk.sitkIdentity)
    sides = ((pair.fixed, pair.fixed_mask, identity), (pair.moving, pair.moving_mask, start))
    fixed, moving = (
        extract_features(*resample_to_grid(image, mask, grid, transform), mask is not None, network, use_mind, device)
        for image, mask, transform in sides
    )
    with Progress(total=options.iterations, desc="registration", unit="step") as progress:

        def report(step: int, loss: float) -> None:
            progress.set_postfix_str(f"loss {loss:.4f}")
            progress.update()

        u = convex_adam(fixed, moving, options, report)
    return compose(to_field(u.cpu().numpy(), grid), start, pair.fixed)


def extract_features(
    x: np.ndarray, valid_mask: np.ndarray, has_mask: bool, network: FeatureNetwork | None, use_mind: bool, device: str
) -> Tensor:
    """Concatenate MIND-SSC and network features (0 outside the mask) to (1, C, z, y, x)."""
    image = torch.from_numpy(x)[None, None].to(device)
    parts = [mind_ssc(image)] if use_mind else []
    if network is not None:
        learned = network(image)
        parts.append(learned * torch.from_numpy(valid_mask).to(device) if has_mask else learned)
    return torch.cat(parts, 1)


def affine_matrix(transform: sitk.Transform) -> list[list[float]]:
    """4 x 4 matrix in mm that maps points of the fixed image to points of the moving image."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(axis)) - origin for axis in np.eye(3).tolist()]
    return np.vstack([np.column_stack([*columns, origin]), [0, 0, 0, 1]]).round(6).tolist()


def displacement_statistics(field: sitk.Image) -> dict[str, float]:
    """Mean and maximum length of the displacement, in mm.

    >>> field = sitk.GetImageFromArray(np.full((2, 2, 2, 3), 2.0), isVector=True)
    >>> round(displacement_statistics(field)["mean"], 3)
    3.464
    """
    length = np.linalg.norm(_values(field), axis=-1)
    return {"mean": float(length.mean()), "maximum": float(length.max())}


def _values(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayViewFromImage(image)
