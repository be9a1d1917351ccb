"""Norms, spectra and tails against dense numpy and hand-made cases."""

import numpy as np
import pytest
from scipy.stats import kurtosis

from graphhalu.weights.spectra import entries_of, gram, power_law, spectrum, spectrum_of_gram


@pytest.fixture
def matrix():
    return np.random.default_rng(0).normal(0.1, 2.0, size=(61, 53)).astype(np.float32)


@pytest.mark.parametrize("turned", [False, True])
def test_the_spectrum_is_that_of_dense_numpy(matrix, turned):
    values = matrix.T if turned else matrix
    found = spectrum_of_gram(gram(values))
    singular = np.linalg.svd(values.astype(np.float64), compute_uv=False)
    share = singular**2 / (singular**2).sum()
    assert found.sigma_max == pytest.approx(singular[0], rel=1e-9)
    assert found.stable_rank == pytest.approx((singular**2).sum() / singular[0] ** 2, rel=1e-9)
    assert found.entropy_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-9)


def test_the_largest_singular_value_alone_is_the_same(matrix):
    found = spectrum_of_gram(gram(matrix), is_full=False)
    full = spectrum_of_gram(gram(matrix))
    assert found.sigma_max == pytest.approx(full.sigma_max, rel=1e-6)
    assert found.stable_rank == pytest.approx(full.stable_rank, rel=1e-6)
    assert np.isnan(found.entropy_rank)


def test_entries_are_those_of_dense_numpy_whatever_the_chunks(matrix):
    whole, parts = entries_of([matrix]), entries_of([matrix[:7], matrix[7:40], matrix[40:]])
    assert np.allclose(list(whole.values()), list(parts.values()), rtol=1e-6)
    wide = matrix.astype(np.float64)
    rms = np.sqrt((wide**2).mean())
    rows = np.sqrt((wide**2).sum(1))
    assert whole["frobenius"] == pytest.approx(np.linalg.norm(wide), rel=1e-9)
    assert whole["kurtosis"] == pytest.approx(kurtosis(wide, axis=None, fisher=False), rel=1e-6)
    assert whole["outlier"] == pytest.approx(np.abs(wide).max() / rms, rel=1e-9)
    assert whole["row_outlier"] == pytest.approx(rows.max() / np.median(rows), rel=1e-6)


def test_what_is_not_finite_is_counted_and_left_out(matrix):
    damaged = matrix.copy()
    damaged[3, 5], damaged[2, 2] = np.nan, np.inf
    found = entries_of([damaged])
    assert found["n_not_finite"] == 2
    assert np.isfinite(found["frobenius"])


def test_zeros_are_counted():
    found = entries_of([np.array([[0.0, 1.0, 0.0], [2.0, 0.0, 3.0]], dtype=np.float32)])
    assert found["zero_fraction"] == 0.5


def test_a_power_law_is_found_again():
    drawn = np.random.default_rng(1).pareto(2.0, size=5000) + 1  # density x^-3
    found = power_law(drawn)
    assert found.tail_alpha == pytest.approx(3.0, abs=4 * found.tail_sigma)
    assert found.tail_sigma == pytest.approx((found.tail_alpha - 1) / found.n_tail**0.5)


def test_a_short_spectrum_has_no_tail():
    assert np.isnan(power_law(np.arange(1.0, 31.0)).tail_alpha)


def test_equal_singular_values_have_the_full_ranks():
    found = spectrum(np.full(7, 4.0))
    assert (found.sigma_max, found.stable_rank) == (2.0, 7.0)
    assert found.entropy_rank == pytest.approx(7.0)
