"""Slow reference implementation of the synthesis in NumPy and SciPy, one element at a time.

It shares no code with ``nnunet_invariance.synthesis``. The tests compare with it, and a benchmark measures its speed. A
step takes one array (z, y, x) and plain numbers.
"""

import numpy as np
from scipy import ndimage
from scipy.special import erf


def interpolate(grid, size):
    """Interpolate a coarse array linearly to ``size``, with aligned voxel centres."""
    places = [(np.arange(n) + 0.5) * g / n - 0.5 for g, n in zip(grid.shape, size, strict=True)]
    return ndimage.map_coordinates(grid, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")


def paint(masks, matrices, shifts, size, first=1):
    """Paint masks over one another; each is repeated periodically and sampled at M x + t."""
    labels = np.zeros(size, np.uint8)
    for k, (mask, matrix, shift) in enumerate(zip(masks, matrices, shifts, strict=True)):
        rest = [max(0, n - m) for n, m in zip(size, mask.shape, strict=True)]
        padded = np.pad(mask.astype(np.uint8), [((r + 1) // 2, r // 2) for r in rest])
        moved = ndimage.affine_transform(padded, matrix, shift, order=0, mode="grid-wrap", output_shape=size)
        labels[moved > 0] = first + k
    return labels


def majority(labels):
    """The most frequent of 27 labels; a tie is won by the voxel's own label, otherwise by the lowest."""
    padded = np.pad(labels, 1, mode="edge")
    result = np.empty_like(labels)
    for z, y, x in np.ndindex(labels.shape):
        votes = 2 * np.bincount(padded[z : z + 3, y : y + 3, x : x + 3].ravel(), minlength=256)
        votes[labels[z, y, x]] += 1
        result[z, y, x] = votes.argmax()
    return result


def foreground_mask(centre, radius, displacement, size):
    """A sphere sampled at displaced positions, then a median filter."""
    places = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in size), indexing="ij"))
    for grid in displacement:
        places += np.stack([interpolate(channel, size) for channel in grid])
    inside = ((places - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0) < radius**2
    return ndimage.median_filter(inside.astype(np.uint8), 3, mode="nearest") > 0


def envelope(mask, half_width):
    """The dilation by a ball minus the erosion by it."""
    line = np.arange(-half_width, half_width + 1) ** 2
    ball = line[:, None, None] + line[:, None] + line <= half_width**2
    padded = np.pad(mask, half_width, mode="edge")
    band = ndimage.binary_dilation(padded, ball) & ~ndimage.binary_erosion(padded, ball)
    inner = slice(half_width, -half_width)
    return band[inner, inner, inner]


def rescale(x):
    """Scale from [min, max] to [0, 1]."""
    return (x - x.min()) / max(x.max() - x.min(), 1e-7)


def appearance(labels, rng):
    """One normal distribution per label, then clip, rescale and texture."""
    x = np.empty(labels.shape)
    for rank, label in enumerate(np.unique(labels)):
        where = labels == label
        x[where] = rng.uniform(25, 255) + rng.uniform(5, 20) * rng.standard_normal(int(where.sum()))
        if rank == 0 and rng.random() < 0.25:
            x[where] = 0
    x = rescale(np.maximum(x, 0))
    texture = np.zeros(labels.shape)
    for scale in (4, 8, 16, 32):
        grid = rng.standard_normal([-(-n // scale) for n in labels.shape]) * rng.uniform(0, 5)
        texture += interpolate(grid, labels.shape)
    return x * (1 + 0.02 * texture)


def bias_field(x, coefficients):
    """Multiply by the exponential of Legendre polynomials up to total degree 3; coefficients are sorted by z, y, x."""
    table = np.zeros((4, 4, 4))
    powers = [(i, j, k) for i in range(4) for j in range(4) for k in range(4) if i + j + k <= 3]
    for power, coefficient in zip(powers, coefficients, strict=True):
        table[power] = coefficient
    return x * np.exp(np.polynomial.legendre.leggrid3d(*(np.linspace(-1, 1, n) for n in x.shape), table))


def spike(x, place, strength):
    """Add a spike: set one coefficient of the spectrum."""
    spectrum = np.fft.fftn(x)
    level = 2.5 * strength * np.log(np.abs(spectrum) + 1e-10).mean()
    where = tuple(min(int(p * n), n - 1) for p, n in zip(place, x.shape, strict=True))
    spectrum[where] = np.exp(level + 1j * np.angle(spectrum[where]))
    return np.fft.ifftn(spectrum).real


def gamma(x, exponent):
    """Gamma on the range of the array."""
    return rescale(x) ** exponent * (x.max() - x.min()) + x.min()


def smoothing(x, sigmas):
    """Convolve each axis with a Gaussian integrated over voxels."""
    for axis, sigma in enumerate(sigmas):
        reach = int(max(4 * sigma, 0.5) + 0.5)
        edges = (np.arange(-reach, reach + 2) - 0.5) / (max(sigma, 1e-9) * np.sqrt(2))
        taps = np.diff(erf(edges))
        x = ndimage.correlate1d(x, taps / taps.sum(), axis, mode="nearest")
    return x


def ringing(x, alpha):
    """Remove the frequencies outside of a ball."""
    frequencies = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in x.shape), indexing="ij")
    kept = np.sqrt(sum(f**2 for f in frequencies)) <= (1 - alpha) * max(x.shape) / np.sqrt(2) + 1e-9
    return np.fft.ifftn(np.fft.fftn(x) * kept).real


def sharpening(x, first, second, weight):
    """A blurred image plus its difference from a more blurred one."""
    blurred = smoothing(x, first)
    return blurred + weight * (blurred - smoothing(blurred, second))


def low_resolution(x, zoom):
    """Sample the nearest voxels of a coarse grid and interpolate back."""
    coarse = [round(n * zoom) for n in x.shape]
    picked = [np.floor((np.arange(m) + 0.5) * n / m).astype(int) for m, n in zip(coarse, x.shape, strict=True)]
    return interpolate(x[np.ix_(*picked)], x.shape)


def corrupt(x, rng):
    """Apply the ten steps with their probabilities and ranges."""
    x = rescale(x)
    if rng.random() < 0.98:
        x = bias_field(x, rng.uniform(0, 0.075, 20))
    if rng.random() < 0.2:
        x = spike(x, rng.random(3), rng.uniform(0.95, 1.1))
    if rng.random() < 0.5:
        x = gamma(x, rng.uniform(0.5, 2.0))
    if rng.random() < 0.5:
        x = smoothing(x, rng.uniform(0, 0.333, 3))
    if rng.random() < 0.5:
        x = ringing(x, rng.uniform(0, 0.333))
    if rng.random() < 0.25:
        first = rng.uniform(0.5, 1.0, 3)
        x = sharpening(x, first, rng.uniform(0.5, first), rng.uniform(10, 30))
    if rng.random() < 0.333:
        x = low_resolution(x, rng.uniform(0.5, 1.0))
    return rescale(np.maximum(x, 0))
