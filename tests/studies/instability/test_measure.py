"""Measures of a synthetic tensor with known shares, against numbers worked out by hand."""

import numpy as np
import pytest

from graphhalu.core.axes import N_SPANS, Span
from graphhalu.features.instability import layer_slice
from graphhalu.studies.instability.measure import step_measures, system_share, visible_layers

# share of the prompt's attention that each of two heads pays to the system prompt, by layer
SHARES = np.array([[0.5, 0.5], [0.2, 0.1], [0.4, 0.3], [0.6, 0.2], [0.9, 0.1]])
ANSWER = 0.2


def mass_of(shares, n_steps=3):
    """Rows that pay 0.2 to the answer and the rest to system, user and template."""
    mass = np.zeros((*shares.shape, n_steps, N_SPANS), dtype=np.float32)
    mass[..., Span.ANSWER] = ANSWER
    prompt = 1 - ANSWER
    mass[..., Span.SYSTEM] = prompt * shares[..., None]
    mass[..., Span.QUESTION] = prompt * (1 - shares[..., None]) / 4
    mass[..., Span.TEMPLATE] = prompt * (1 - shares[..., None]) * 3 / 4
    return mass


def all_seen(n_layers=5, n_steps=3):
    return [np.ones((n_layers, n_steps), dtype=bool) for _ in range(2)]


def measured(denominator="prompt"):
    return step_measures(mass_of(SHARES), *all_seen(), denominator)


def test_the_spread_over_heads_is_the_population_standard_deviation():
    np.testing.assert_allclose(measured()["std"][0], [0, 0.05, 0.05, 0.2, 0.4], atol=1e-6)


def test_the_spread_of_log_odds_is_that_of_the_logits():
    # log(0.2 / 0.8) - log(0.1 / 0.9) = log(9 / 4); half of it is the deviation of two heads
    assert measured()["logit"][1, 1] == pytest.approx(np.log(2.25) / 2, rel=1e-5)


def test_the_bounded_spread_is_one_where_heads_differ_as_far_as_their_mean_allows():
    shares = np.array([[1.0, 0.0], [0.2, 0.1]])
    found = step_measures(mass_of(shares), *all_seen(2), "prompt")["bounded"][0]
    # the mean of the second is 0.15, and 0.15 times 0.85 is 0.1275
    np.testing.assert_allclose(found, [1.0, 0.05 / np.sqrt(0.1275)], rtol=1e-5)


def test_agreement_is_the_correlation_of_heads_over_the_middle_layers():
    # layers 1 to 3: (0.2, 0.4, 0.6) and (0.1, 0.3, 0.2); 0.02 / sqrt(0.08 * 0.02) = 0.5
    assert layer_slice(5, 0.25, 0.10) == slice(1, 4)
    np.testing.assert_allclose(measured()["agreement"], 0.5, rtol=1e-4)


def test_the_share_of_everything_counts_the_answer_in_the_denominator():
    mass = mass_of(SHARES)
    np.testing.assert_allclose(system_share(mass, "prompt")[..., 0], SHARES, rtol=1e-6)
    np.testing.assert_allclose(system_share(mass, "everything")[..., 0], 0.8 * SHARES, rtol=1e-6)
    np.testing.assert_allclose(measured("everything")["std"][0, 3], 0.8 * 0.2, rtol=1e-5)


def test_the_focus_is_system_over_system_and_user():
    # 0.2 against a quarter of 0.8; 0.1 against a quarter of 0.9
    expected = [0.2 / (0.2 + 0.2), 0.1 / (0.1 + 0.225)]
    np.testing.assert_allclose(measured()["focus_heads"][1], expected, rtol=1e-5)
    np.testing.assert_allclose(measured()["focus"][0, 1], np.mean(expected), rtol=1e-5)


def test_axes_are_step_layer_head():
    found = step_measures(mass_of(SHARES, n_steps=7), *all_seen(n_steps=7), "prompt")
    assert found["share"].shape == (7, 5, 2)
    assert found["std"].shape == found["focus"].shape == (7, 5)
    assert found["agreement"].shape == (7,)
    assert found["focus_heads"].shape == (5, 2)


def test_a_layer_whose_window_hides_the_system_prompt_has_no_measure():
    sees_system, sees_all = visible_layers(
        np.array([9, 10, 11]), np.array([2, 3, 4]), [None, 6, 7, None, None]
    )
    np.testing.assert_array_equal(sees_system[1], [True, False, False])
    np.testing.assert_array_equal(sees_system[2], [True, True, False])
    assert sees_system[0].all()
    assert not sees_all[2].any()
    found = step_measures(mass_of(SHARES), sees_system, sees_all, "prompt")
    assert np.isnan(found["std"][1:, 1]).all()
    assert np.isfinite(found["std"][0]).all()
    # layers 1 and 2 never show everything, so that one middle layer is left: no correlation
    assert np.isnan(found["agreement"]).all()


def test_a_head_on_no_prompt_token_at_all_has_the_share_zero():
    mass = np.zeros((2, 3, 5, N_SPANS), dtype=np.float32)
    mass[..., Span.ANSWER] = 1.0
    assert (system_share(mass, "prompt") == 0).all()
