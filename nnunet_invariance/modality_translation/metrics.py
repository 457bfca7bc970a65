"""Similarity between a predicted image and the real image, in two conventions."""

import math

import numpy as np
from skimage.metrics import mean_squared_error, normalized_root_mse, peak_signal_noise_ratio, structural_similarity

THRESHOLD = -0.35  # z-score below which PUIR's published code treats a voxel of the real image as background
WINDOW = 7  # voxels, scikit-image's default


def _similarity(real: np.ndarray, predicted: np.ndarray, span: float) -> float:
    """SSIM with a uniform window of 7 voxels, or the largest odd window that fits; NaN if that is below 3 voxels."""
    smallest = min(real.shape)
    window = min(WINDOW, smallest - 1 + smallest % 2)
    return float(structural_similarity(real, predicted, data_range=span, win_size=window)) if window >= 3 else math.nan


def plain_scores(real: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    r"""PSNR (dB), NMSE and SSIM over the whole volume in raw intensities; the data range is that of the real image.

    .. math:: PSNR = 10 \log_{10} R^2 / MSE, \quad NMSE = \sum (\hat x - x)^2 / \sum x^2

    >>> plain_scores(np.eye(8), 0.9 * np.eye(8))[1].__round__(4)
    0.01
    """
    real, predicted = real.astype(np.float64), predicted.astype(np.float64)
    span = float(np.ptp(real))
    error = float(normalized_root_mse(real, predicted, normalization="euclidean")) ** 2
    return _peak(real, predicted, span), error, _similarity(real, predicted, span)


def release_scores(real: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    """PSNR (dB), NMSE and SSIM as in PUIR's published code (arXiv 2411.06106), but for each image separately.

    Both images are z-scored over all voxels, the background of the real image (z < -0.35) is copied into the predicted
    image, and the data range is the larger of the two. NMSE is the mean squared error, because a z-scored image has a
    mean square of 1. The published code z-scores all output images together.
    """
    real, predicted = (
        (x - x.mean()) / max(x.std(), 1e-8) for x in (real.astype(np.float64), predicted.astype(np.float64))
    )
    predicted = np.where(real < THRESHOLD, real, predicted)
    span = float(max(np.ptp(real), np.ptp(predicted)))
    return _peak(real, predicted, span), float(mean_squared_error(real, predicted)), _similarity(real, predicted, span)


def _peak(real: np.ndarray, predicted: np.ndarray, span: float) -> float:
    if np.array_equal(real, predicted):
        return math.inf
    return float(peak_signal_noise_ratio(real, predicted, data_range=span))
