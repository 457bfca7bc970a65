"""How strong the checkerboard of an image is."""

from collections.abc import Sequence

import numpy as np

NEIGHBOURS = 6  # frequencies that a peak is compared with
LEAST = 4 * NEIGHBOURS  # voxels of an axis, so that low frequencies are not among the neighbours


def nyquist_peak(image: np.ndarray, axes: Sequence[int] | None = None) -> float:
    r"""Energy at the Nyquist frequency, relative to that of the frequencies just below it.

    .. math:: \frac{\sum |F_{n/2}|^2}{\frac{1}{6} \sum_{k=1}^{6} \sum |F_{n/2-k}|^2}

    F is the Fourier transform along an axis of n voxels (the last one of an odd number is left out), and the sums are
    over all other positions. Images have a smooth spectrum and a value around 1, noise has 1; a checkerboard, which
    changes its sign from voxel to voxel, has far more. Compare with the value of a real image.

    >>> sign = (-1.0) ** np.arange(32)
    >>> noise = np.random.default_rng(0).normal(size=(32, 32))
    >>> nyquist_peak(noise) < 2 < 10 < nyquist_peak(noise + sign)
    True

    Args:
        image: any number of axes.
        axes: the axes to look at; the largest value counts. Default: all of 24 voxels or more.

    Returns:
        NaN if no axis is long enough, or if the image has no energy at these frequencies.
    """
    chosen = [axis for axis in (axes or range(image.ndim)) if image.shape[axis] >= LEAST]
    peaks = []
    for axis in chosen:
        lines = np.moveaxis(image, axis, -1).astype(np.float64)
        lines = lines[..., : lines.shape[-1] // 2 * 2]
        lines = (lines - lines.mean(-1, keepdims=True)) * np.hanning(lines.shape[-1])
        energy = np.square(np.abs(np.fft.rfft(lines))).reshape(-1, lines.shape[-1] // 2 + 1).sum(0)
        around = energy[-1 - NEIGHBOURS : -1].mean()
        peaks.append(energy[-1] / around if around > 0 else np.nan)
    return float(np.nanmax(peaks)) if peaks and not np.isnan(peaks).all() else float("nan")
