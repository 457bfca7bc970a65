"""Whether the intensities of an image are far from those of the training cases."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.errors import OutputError

logger = logging.getLogger(__name__)

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
FILE = "intensities.json"
FORM = {"quantiles": [[[float]]]}
REMEDY = (
    "Check the segmentations. A network that was trained with styles (ICMSegTrainer), --styles 4, or nnunet-invariance "
    "adapt can help."
)
LEAST_CASES = 5
MOST_CASES = 50
#: Smallest spread that counts, in units of normalised intensities: training cases can agree by chance.
LEAST_SPREAD = 0.02
#: Share of the identity in the covariance matrix of the training cases, which are fewer than its entries.
SHRINKAGE = 0.2
#: A shift of the mean of several cases is far from 0 beyond this number of standard errors.
FAR = 4.5


def describe_intensities(image: np.ndarray) -> np.ndarray:
    """Quantiles of each channel of a preprocessed image (C, *spatial): (C, 7); nan for a constant (missing) channel.

    Preprocessed intensities are compared, because a z-score removes level and scale, to which the network is blind.
    """
    thinned = (slice(None), *(slice(None, None, max(1, n // 64)) for n in image.shape[1:]))
    values = image[thinned].reshape(len(image), -1).astype(np.float64)
    quantiles = np.quantile(values, QUANTILES, axis=1).T
    quantiles[np.ptp(values, axis=1) == 0] = np.nan
    return quantiles


def distances(statistics: np.ndarray, training: np.ndarray) -> np.ndarray:
    r"""Mahalanobis distance of each image from the training cases.

    .. math:: d(x) = \sqrt{z^T (0.8 \, C + 0.2 \, I)^{-1} z}, \quad z = (x - m) / (s + 0.02)

    m and s are mean and standard deviation of each quantile over the training cases, and C is the covariance matrix of
    their z.

    Args:
        statistics: (M, C, Q). training: (N, C, Q).

    Returns:
        (M,).
    """
    known, found = (np.ma.masked_invalid(values.reshape(len(values), -1)) for values in (training, statistics))
    middle, spread = known.mean(0), known.std(0) + LEAST_SPREAD
    # A missing channel has the mean of the training cases, so that it does not count.
    known, found = (((values - middle) / spread).filled(0.0) for values in (known, found))
    covariance = (1 - SHRINKAGE) * np.cov(known.T) + SHRINKAGE * np.eye(known.shape[1])
    return np.sqrt(np.einsum("mi,mi->m", found, np.linalg.solve(covariance, found.T).T))


def threshold(training: np.ndarray) -> float:
    """Largest distance of a training case from the others: (N, C, Q). One new case in N + 1 exceeds it by chance."""
    others = [np.delete(training, i, 0) for i in range(len(training))]
    return max(float(distances(training[i : i + 1], rest)[0]) for i, rest in enumerate(others))


def shift_of_mean(statistics: np.ndarray, training: np.ndarray) -> float:
    r"""Largest difference between the means of two groups of images, in standard errors.

    .. math:: \max_q |\bar x_q - m_q| / \big(\max(s_q, 0.02) \sqrt{1/M + 1/N}\big)

    Args:
        statistics: (M, C, Q). training: (N, C, Q); s is their standard deviation.
    """
    known, found = np.ma.masked_invalid(training), np.ma.masked_invalid(statistics)
    error = np.ma.maximum(known.std(0, ddof=1), LEAST_SPREAD) * np.sqrt(1 / len(found) + 1 / len(known))
    return float((np.abs(found.mean(0) - known.mean(0)) / error).filled(0.0).max())


def training_intensities(model: Path, plans: PlansManager, configuration: ConfigurationManager) -> np.ndarray | None:
    """Statistics (N, C, 7) of the training cases of a model; None if they are not known.

    They are read from ``intensities.json`` in the model's folder. If there is none, they are computed from the
    preprocessed cases (50 at most) and written there.

    Raises:
        DamagedFileError: ``intensities.json`` is damaged.
    """
    if (model / FILE).is_file():
        remedy = "Delete the file; it is written again if the preprocessed training cases exist."
        return np.asarray(read_json(model / FILE, remedy=remedy, form=FORM)["quantiles"], float)
    root = os.environ.get("nnUNet_preprocessed", "")
    folder = Path(root) / plans.dataset_name / configuration.data_identifier
    if not root or not folder.is_dir():
        return None
    dataset_class = infer_dataset_class(str(folder))
    cases = dataset_class(str(folder))
    names = sorted(cases.identifiers)[:MOST_CASES]
    found = np.stack([describe_intensities(np.asarray(cases.load_case(name)[0][:])) for name in names])
    try:
        write_json(model / FILE, {"levels": QUANTILES, "cases": names, "quantiles": found.tolist()})
    except OutputError:
        logger.info("the folder %s is not writable; the intensities of the training cases are not stored", model)
    return found


def shift_warnings(cases: Sequence[str], statistics: Sequence[np.ndarray], training: np.ndarray | None) -> list[str]:
    """Warnings of cases, and of all cases together, whose intensities are far from those of the training cases.

    Without at least five training cases there are none.
    """
    if training is None or len(training) < LEAST_CASES or not cases:
        return []
    limit, found, warnings = threshold(training), np.stack(statistics), []
    pairs = zip(cases, distances(found, training), strict=True)
    if far := [f"{case} ({distance:.1f})" for case, distance in pairs if distance > limit]:
        warnings.append(
            f"The intensities of {len(far)} of {len(cases)} cases are farther from those of the training cases than "
            f"any training case is from the others ({limit:.1f}): {', '.join(far)}. {REMEDY}"
        )
    shift = shift_of_mean(found, training) if len(cases) > 1 else 0.0
    if shift > FAR:
        warnings.append(
            f"Together, the intensities of the {len(cases)} cases differ from those of the training cases: the mean of "
            f"a quantile by {shift:.1f} standard errors (limit {FAR:g}), as in another contrast or modality. {REMEDY}"
        )
    return warnings
