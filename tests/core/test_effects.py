import numpy as np
import pytest
from scipy.stats import false_discovery_control

from graphhalu.core.numerics import benjamini_hochberg, cliffs_delta, length_adjusted, ranked


def slow_delta(values, is_positive, weights):
    won = total = 0.0
    for i in np.flatnonzero(is_positive):
        for j in np.flatnonzero(~is_positive):
            pair = weights[i] * weights[j]
            total += pair
            won += pair * np.sign(values[i] - values[j])
    return won / total


def test_delta_equals_a_loop_over_pairs_with_ties_and_weights():
    generator = np.random.default_rng(0)
    values = generator.integers(0, 7, 31).astype(float)
    is_positive = generator.uniform(size=31) < 0.3
    weights = generator.integers(0, 3, (5, 31)).astype(float)

    found = cliffs_delta(ranked(values, is_positive), weights)

    expected = [slow_delta(values, is_positive, row) for row in weights]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_resample_without_one_class_has_no_delta():
    measure = ranked(np.array([1.0, 2.0, 3.0]), np.array([True, False, False]))
    found = cliffs_delta(measure, np.array([[0.0, 1, 1], [1, 1, 1]]))
    assert np.isnan(found[0])
    assert found[1] == -1


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
