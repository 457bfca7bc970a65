"""Our appearances against those of the slow implementation: same ranges, other random numbers, same distribution."""

import numpy as np
import pytest

from nnunet_invariance.synthesis.engine import SynthesisEngine
from nnunet_invariance.synthesis.options import SynthesisOptions
from tests.helpers import slow_synthesis as slow

pytestmark = pytest.mark.integration

SIZE = (32, 32, 32)
MAPS = 128


@pytest.fixture(scope="module")
def appearances():
    engine, rng = SynthesisEngine(SynthesisOptions(size=SIZE)), np.random.default_rng(0)
    ours, theirs = [], []
    for start in range(0, MAPS, 16):
        made = engine.batch(range(start, start + 16))
        ours += [view.numpy() for pair in zip(*made.views, strict=True) for view in pair[:2]]
        theirs += [
            slow.corrupt(slow.appearance(labels, rng), rng) for labels in made.labels[:, 0].numpy() for _ in (0, 1)
        ]
    return np.concatenate(ours), np.stack(theirs)


def test_moments(appearances):
    for moment, tolerance in ((np.mean, 0.04), (np.std, 0.02)):
        ours, theirs = (moment(x, axis=(1, 2, 3)) for x in appearances)
        assert ours.mean() == pytest.approx(theirs.mean(), abs=tolerance)
        assert ours.std() == pytest.approx(theirs.std(), abs=tolerance)
        # No quantile of the elements' moments is far off: the largest gap of two samples of 256.
        gap = np.abs(np.quantile(ours, np.linspace(0.1, 0.9, 9)) - np.quantile(theirs, np.linspace(0.1, 0.9, 9)))
        assert gap.max() < 2 * tolerance


def test_histograms(appearances):
    bins = np.linspace(0, 1, 51)
    ours, theirs = (np.cumsum(np.histogram(x, bins)[0]) / x.size for x in appearances)
    assert np.abs(ours - theirs).max() < 0.05


def test_power_spectra(appearances):
    frequency = np.sqrt(sum(f**2 for f in np.meshgrid(*[np.fft.fftfreq(32)] * 3, indexing="ij")))
    ring = np.digitize(frequency, np.linspace(0, 0.85, 13))

    def profile(x):
        power = np.abs(np.fft.fftn(x - x.mean((1, 2, 3), keepdims=True), axes=(1, 2, 3))) ** 2
        total = np.stack([np.bincount(ring.ravel(), p.ravel())[1:] for p in power])
        return np.log(total / np.bincount(ring.ravel())[1:] + 1e-12)

    # Ringing empties the corners of the spectrum in half of the elements: the upper quartile is that of the other half.
    ours, theirs = (np.quantile(profile(x), 0.75, axis=0) for x in appearances)
    assert np.abs(ours - theirs).max() < 0.35
