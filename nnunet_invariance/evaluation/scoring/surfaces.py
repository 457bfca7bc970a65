"""Distances between surfaces in millimetres, by monai.metrics (extra ``evaluate``)."""

import importlib.util
import math
import warnings
from collections.abc import Sequence

import numpy as np

from nnunet_invariance.errors import MissingPackageError

PERCENTILE = 95


def require_monai() -> None:
    """Check that MONAI is installed.

    Raises:
        MissingPackageError
    """
    if importlib.util.find_spec("monai") is None:
        msg = "NSD and HD95 are computed by monai, which is not installed. Run `pip install monai`."
        raise MissingPackageError(msg)


def surface_scores(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """NSD at a tolerance, in [0, 1], and HD95 in mm, of two masks of the same shape.

    The surface of a mask consists of its voxels that have a face neighbour outside. With the surface voxels P of the
    prediction and R of the reference, NSD = (|{p: d(p, R) <= t}| + |{r: d(r, P) <= t}|) / (|P| + |R|) (arXiv
    1809.04430, with voxels counted instead of areas), and HD95 is the larger of the two 95th percentiles of d. If both
    masks are empty, both are nan; if one is, NSD is 0 and HD95 is the diagonal of the image, the largest possible
    distance.

    Args:
        reference, prediction: boolean, two or three axes; a first axis of length 1 is dropped.
        spacing: in mm, one per axis.
        tolerance: t, in mm.
    """
    if reference.ndim == 3 and reference.shape[0] == 1:  # 2-D images, as nnU-Net reads them
        reference, prediction, spacing = reference[0], prediction[0], spacing[1:]
    if not reference.any() and not prediction.any():
        return math.nan, math.nan
    if not reference.any() or not prediction.any():
        return 0.0, math.hypot(*(n * s for n, s in zip(reference.shape, spacing, strict=True)))
    # Imported here, because it takes seconds.
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    p, r = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (prediction, reference))
    spacing = [float(s) for s in spacing]
    with warnings.catch_warnings():  # MONAI 1.6 calls its own function with a deprecated argument
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        nsd = compute_surface_dice(p, r, [tolerance], include_background=True, spacing=spacing)
        hd95 = compute_hausdorff_distance(p, r, include_background=True, percentile=PERCENTILE, spacing=spacing)
    return float(nsd), float(hd95)
