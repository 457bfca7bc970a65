"""The check of intensities against its equations, on samples of one distribution and of others, and on files."""

import json

import numpy as np
import pytest

from nnunet_invariance.errors import DamagedFileError
from nnunet_invariance.prediction.intensity_shift import (
    FAR,
    FILE,
    QUANTILES,
    describe_intensities,
    distances,
    shift_of_mean,
    shift_warnings,
    threshold,
    training_intensities,
)


def cases(count, seed, change=lambda x: x):
    """Statistics of images of two tissues and noise, z-scored after a change of contrast."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        image = np.where(rng.random((1, 12, 12, 12)) < rng.normal(0.3, 0.02), 3.0, 0.0) + rng.normal(
            0, 0.5, (1, 12, 12, 12)
        )
        image = change(image)
        found.append(describe_intensities((image - image.mean()) / image.std()))
    return np.stack(found)


def test_statistics_are_the_quantiles_of_each_channel():
    image = np.random.default_rng(0).normal(size=(2, 5, 6, 7))
    for channel, found in zip(image, describe_intensities(image), strict=True):
        assert found == pytest.approx([np.quantile(channel, q) for q in QUANTILES])
    long = np.broadcast_to(np.arange(1000.0), (1, 1, 1, 1000))
    assert describe_intensities(long)[0] == pytest.approx([np.quantile(np.arange(0, 1000, 15), q) for q in QUANTILES])


def test_distances_equal_the_equation_computed_entry_by_entry():
    training, test = cases(9, 0), cases(3, 1)
    n, k = 9, len(QUANTILES)
    mean = [sum(training[i, 0, q] for i in range(n)) / n for q in range(k)]
    std = [(sum((training[i, 0, q] - mean[q]) ** 2 for i in range(n)) / n) ** 0.5 + 0.02 for q in range(k)]
    scaled = [[(training[i, 0, q] - mean[q]) / std[q] for q in range(k)] for i in range(n)]
    matrix = [
        [0.8 * sum(row[a] * row[b] for row in scaled) / (n - 1) + 0.2 * (a == b) for b in range(k)] for a in range(k)
    ]
    inverse = np.linalg.inv(np.array(matrix))
    for found, case in zip(distances(test, training), test, strict=True):
        z = [(case[0, q] - mean[q]) / std[q] for q in range(k)]
        expected = sum(z[a] * inverse[a, b] * z[b] for a in range(k) for b in range(k)) ** 0.5
        assert found == pytest.approx(expected)
    others = [distances(training[i : i + 1], np.delete(training, i, 0))[0] for i in range(n)]
    assert threshold(training) == pytest.approx(max(others))


@pytest.mark.integration
def test_one_case_in_n_plus_one_of_the_same_distribution_is_far():
    """The largest of n exchangeable distances is exceeded with probability of about 1 / (n + 1)."""
    far = [(distances(cases(10, 100 + s), t) > threshold(t)).mean() for s in range(20) for t in [cases(9, s)]]
    assert 0.03 < np.mean(far) < 0.25


@pytest.mark.parametrize("change", [lambda x: -x, np.square, lambda x: np.abs(x - 3)])
def test_another_contrast_is_far(change):
    training, other = cases(10, 0), cases(6, 1, change)
    assert (distances(other, training) > threshold(training)).all()
    assert shift_of_mean(other, training) > FAR
    assert shift_of_mean(cases(6, 2), training) < FAR


def test_missing_channels_do_not_count():
    image = np.stack((np.random.default_rng(0).normal(size=(6, 6, 6)), np.zeros((6, 6, 6))))
    assert np.isnan(describe_intensities(image)).tolist() == [[False] * len(QUANTILES), [True] * len(QUANTILES)]
    training, test = np.concatenate((cases(10, 0), cases(10, 5)), 1), np.concatenate((cases(2, 1), cases(2, 6)), 1)
    middle = test.copy()
    middle[:, 1] = training[:, 1].mean(0)
    test[:, 1] = np.nan
    assert distances(test, training) == pytest.approx(distances(middle, training))
    assert shift_of_mean(test, training) == pytest.approx(shift_of_mean(test[:, :1], training[:, :1]))


def test_warnings_name_the_cases_and_few_training_cases_give_none():
    training, same, other = cases(10, 0), cases(1, 2), cases(1, 1, np.negative)
    (warning, *_) = shift_warnings(["like", "unlike"], [same[0], other[0]], training)
    assert "1 of 2 cases" in warning
    assert ": unlike (" in warning
    assert shift_warnings(["like"], [same[0]], training) == []
    assert shift_warnings(["unlike"], [other[0]], training[:4]) == []
    assert shift_warnings(["unlike"], [other[0]], None) == []
    (warning,) = (w for w in shift_warnings(list("abcd"), list(cases(4, 3, np.negative)), training) if "Together" in w)
    assert "standard errors" in warning


def test_statistics_of_the_training_cases_are_read_once(tiny, tmp_path, monkeypatch):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(tiny.plans)
    configuration = plans.get_configuration(tiny.configuration)
    found = training_intensities(tmp_path, plans, configuration)
    assert found.shape == (6, 1, len(QUANTILES))
    assert json.loads((tmp_path / FILE).read_text())["cases"][0] == "case_000"
    monkeypatch.setenv("nnUNet_preprocessed", "")
    assert np.array_equal(training_intensities(tmp_path, plans, configuration), found)
    (tmp_path / FILE).unlink()
    assert training_intensities(tmp_path, plans, configuration) is None


def test_a_damaged_file_of_intensities_is_named(tmp_path):
    (tmp_path / FILE).write_text('{"levels": []}')
    with pytest.raises(DamagedFileError, match=r"intensities.json.*quantiles.*Delete the file"):
        training_intensities(tmp_path, None, None)
