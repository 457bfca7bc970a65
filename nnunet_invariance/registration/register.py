"""``register``: from two files to a warped image, a field in millimetres, statistics and a picture."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor
from tqdm import tqdm

from nnunet_invariance.common.image_files import write_image
from nnunet_invariance.common.json_files import write_json
from nnunet_invariance.errors import OptionError
from nnunet_invariance.registration.affine import align_affine
from nnunet_invariance.registration.checkerboard import write_checkerboard
from nnunet_invariance.registration.convex_adam import ConvexAdamOptions, convex_adam, library, mind_ssc
from nnunet_invariance.registration.fields import compose, jacobian, jacobian_statistics, to_field, warp
from nnunet_invariance.registration.network import FeatureNetwork, find_network_file, load_feature_network
from nnunet_invariance.registration.volumes import bring, read_mask, read_volume, working_grid

Features = Literal["anatomix", "mind", "both"]
CT_WINDOW = (-450.0, 450.0)  # HU


@dataclass(frozen=True)
class Pair:
    """Two images and, where there are any, their masks; each on its own grid."""

    fixed: sitk.Image
    moving: sitk.Image
    fixed_mask: sitk.Image | None = None
    moving_mask: sitk.Image | None = None


def register(
    fixed: Path,
    moving: Path,
    out: Path,
    features: Features = "both",
    weights: Path | None = None,
    fixed_mask: Path | None = None,
    moving_mask: Path | None = None,
    ct: Literal["none", "fixed", "moving", "both"] = "none",
    spacing: float | None = None,
    affine: bool = True,
    options: ConvexAdamOptions | None = None,
    device: str = "cpu",
) -> dict:
    """Register two files and write ``warped.nii.gz``, ``displacement.nii.gz``, ``registration.json`` and a picture.

    The displacement is the whole way, affine part included, on the grid of the fixed image: a vector image in mm that
    SimpleITK's ``DisplacementFieldTransform`` applies. Returns what ``registration.json`` holds.

    Raises:
        VolumeError, WeightsNotFoundError, WeightsIncompatibleError, MissingPackageError, OptionError: before
            anything is written. OutputError: a file cannot be written.
    """
    options = options or ConvexAdamOptions()
    if spacing is not None and spacing <= 0:
        raise OptionError(f"--spacing is {spacing}; expected millimetres above 0.")
    library()  # missing: say so before the work
    fixed, moving, out = Path(fixed), Path(moving), Path(out)
    pair = read_pair(fixed, moving, fixed_mask, moving_mask, ct)
    working_spacing = working_grid(pair.fixed, spacing).GetSpacing()[0]  # too coarse: before the work as well
    network = None
    if features != "mind":
        weights = find_network_file(weights)
        network = load_feature_network(weights, torch.device(device))
    start = sitk.Transform(sitk.AffineTransform(3))
    if affine:
        start = align_affine(pair.fixed, pair.moving, pair.fixed_mask, pair.moving_mask)
    field = deform(pair, start, network, features != "anatomix", options, spacing, device)
    warped = warp(read_volume(moving), field)
    result = {
        "fixed": str(fixed),
        "moving": str(moving),
        "features": features,
        "weights": None if network is None else str(weights),
        "ct": ct,
        "masks": [None if mask is None else str(mask) for mask in (fixed_mask, moving_mask)],
        "affine": affine_matrix(start) if affine else None,
        "convex_adam": dataclasses.asdict(options),
        "working_spacing_mm": round(working_spacing, 4),
        "displacement_mm": displacement_statistics(field),
        "jacobian": jacobian_statistics(jacobian(field)),
    }
    for name, image in (("warped", warped), ("displacement", sitk.Cast(field, sitk.sitkVectorFloat32))):
        write_image(out / f"{name}.nii.gz", image)
    before = sitk.Resample(pair.moving, pair.fixed, start, sitk.sitkLinear, float(_values(pair.moving).min()))
    after = warp(pair.moving, field)
    write_checkerboard(out / "checkerboard.png", pair.fixed, before, after)
    write_json(out / "registration.json", result)
    return result


def read_pair(fixed: Path, moving: Path, fixed_mask: Path | None, moving_mask: Path | None, ct: str) -> Pair:
    """Read and check both images and masks; the intensities of CT are cut to :data:`CT_WINDOW`.

    Raises:
        VolumeError
    """
    images = []
    for role, path in (("fixed", fixed), ("moving", moving)):
        image = read_volume(path)
        images.append(sitk.Clamp(image, image.GetPixelID(), *CT_WINDOW) if ct in (role, "both") else image)
    masks = [
        None if path is None else read_mask(path, image)
        for path, image in zip((fixed_mask, moving_mask), images, strict=True)
    ]
    return Pair(*images, *masks)


def deform(
    pair: Pair,
    start: sitk.Transform,
    network: FeatureNetwork | None,
    mind: bool,
    options: ConvexAdamOptions,
    spacing: float | None = None,
    device: str = "cpu",
) -> sitk.Image:
    """The whole way from fixed to moving, start included, as a field in mm on the grid of the fixed image."""
    grid = working_grid(pair.fixed, spacing)
    sides = (pair.fixed, pair.fixed_mask, sitk.Transform(3, sitk.sitkIdentity)), (pair.moving, pair.moving_mask, start)
    features = [
        features_of(*bring(image, mask, grid, transform), mask is not None, network, mind, device)
        for image, mask, transform in sides
    ]
    with tqdm(total=options.iterations, desc="registration") as progress:

        def report(step: int, loss: float) -> None:
            progress.set_postfix_str(f"loss {loss:.4f}")
            progress.update()

        u = convex_adam(*features, options, report)
    return compose(to_field(u.cpu().numpy(), grid), start, pair.fixed)


def features_of(
    x: np.ndarray, inside: np.ndarray, masked: bool, network: FeatureNetwork | None, mind: bool, device: str
) -> Tensor:
    """MIND-SSC, then the network's features, which are 0 outside of a mask: (1, C, z, y, x)."""
    image = torch.from_numpy(x)[None, None].to(device)
    parts = [mind_ssc(image)] if mind else []
    if network is not None:
        learned = network(image)
        parts.append(learned * torch.from_numpy(inside).to(device) if masked else learned)
    return torch.cat(parts, 1)


def affine_matrix(transform: sitk.Transform) -> list[list[float]]:
    """4 x 4, mm, points of the fixed image to points of the moving one."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(axis))) - origin for axis in np.eye(3)]
    return np.vstack([np.column_stack([*columns, origin]), [0, 0, 0, 1]]).round(6).tolist()


def displacement_statistics(field: sitk.Image) -> dict[str, float]:
    """Mean and largest length, mm."""
    length = np.linalg.norm(_values(field), axis=-1)
    return {"mean": float(length.mean()), "maximum": float(length.max())}


def _values(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayViewFromImage(image)
