import numpy as np
import pytest
from scipy.stats import false_discovery_control

from graphhalu.core.numerics import benjamini_hochberg, length_adjusted


def test_a_measure_of_the_length_alone_has_nothing_left():
    lengths = np.random.default_rng(1).integers(3, 40, (53, 2)).astype(float)
    left = length_adjusted(np.log(lengths[:, 0]) - 3 * np.log(lengths[:, 1]) ** 2, lengths)
    assert not left.any()


def test_what_has_nothing_to_do_with_the_length_stays():
    generator = np.random.default_rng(2)
    lengths = generator.integers(3, 40, (211, 2)).astype(float)
    signal = generator.normal(size=211)
    left = length_adjusted(signal + np.log(lengths[:, 1]), lengths)
    assert np.corrcoef(left, signal)[0, 1] > 0.95


def test_adjusted_p_values_are_those_of_scipy_and_nan_is_no_test():
    p_values = np.random.default_rng(3).uniform(size=29) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p_values), false_discovery_control(p_values))
    found = benjamini_hochberg(np.array([0.01, np.nan, 0.04]))
    assert found.tolist() == [pytest.approx(0.02), pytest.approx(np.nan, nan_ok=True), 0.04]
