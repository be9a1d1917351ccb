"""The paths of penalties against scikit-learn on the same standardised columns."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_sample_weight

from graphhalu.detectors import linear
from graphhalu.detectors.linear import L1_GRID, L2_GRID, LinearModel, Rotation, Scaling, l1_path, l2_path

N_TRACES = 61


def drawn(n_columns, seed=0):
    generator = np.random.default_rng(seed)
    hidden = generator.normal(size=(N_TRACES, 5))
    values = hidden @ generator.normal(size=(5, n_columns))
    values += generator.normal(size=values.shape)
    labels = (hidden[:, 0] + generator.normal(size=N_TRACES) > 0.8).astype(np.int64)
    return values, labels


@pytest.mark.parametrize("n_columns", [7, 131])
@pytest.mark.parametrize("solver", ["newton", "quasi-newton"])
def test_an_l2_model_is_that_of_scikit_learn(n_columns, solver, monkeypatch):
    monkeypatch.setattr(linear, "_FEW_DIMENSIONS", 10**6 if solver == "newton" else 0)
    raw, labels = drawn(n_columns)
    values = Scaling.of(raw).apply(raw)
    rotation = Rotation.of(values)
    for strength, found in zip(L2_GRID, l2_path(rotation.scores, labels), strict=True):
        weight = rotation.columns(found.weight[:, None])[:, 0]
        regression = LogisticRegression(
            C=strength / n_columns, class_weight="balanced", tol=1e-9, max_iter=5000
        ).fit(values, labels)
        np.testing.assert_allclose(weight, regression.coef_[0], atol=2e-4)
        assert found.bias == pytest.approx(regression.intercept_[0], abs=1e-3)


@pytest.mark.parametrize("n_columns", [7, 131])
def test_an_l1_model_meets_the_conditions_of_its_optimum(n_columns):
    raw, labels = drawn(n_columns)
    values = Scaling.of(raw).apply(raw)
    share = compute_sample_weight("balanced", labels) / N_TRACES
    sign = 2.0 * labels - 1.0
    limit = np.abs(values.T @ (share * sign)).max() / 2
    for relative, (weight, bias) in zip(L1_GRID, l1_path(values, labels), strict=True):
        pull = values.T @ (share * sign / (1 + np.exp(sign * (values @ weight + bias))))
        chosen = weight != 0
        np.testing.assert_allclose(pull[chosen], relative * limit * np.sign(weight[chosen]), rtol=0.02)
        assert (np.abs(pull[~chosen]) <= relative * limit * 1.02).all()


def test_an_l1_path_lets_more_columns_in_as_its_penalty_falls():
    raw, labels = drawn(131)
    values = Scaling.of(raw).apply(raw)
    n_chosen = [int((found.weight != 0).sum()) for found in l1_path(values, labels)]
    assert n_chosen[0] < n_chosen[-1] < 131
    assert 0 < n_chosen[0] <= 20


@pytest.mark.parametrize("n_columns", [7, 131])
def test_a_rotation_has_the_variances_of_a_singular_value_decomposition(n_columns):
    raw, _ = drawn(n_columns)
    values = Scaling.of(raw).apply(raw)
    rotation = Rotation.of(values, 5)
    expected = np.linalg.svd(values, compute_uv=False)[:5]
    np.testing.assert_allclose(np.linalg.norm(rotation.scores, axis=0), expected, rtol=1e-6)
    weights = np.random.default_rng(1).normal(size=(5, 3))
    np.testing.assert_allclose(values @ rotation.columns(weights), rotation.scores @ weights, atol=1e-8)


def test_scaling_gives_mean_0_and_deviation_1_with_medians_for_what_is_missing():
    values, _ = drawn(7)
    values[3:9, 2] = np.nan
    scaled = Scaling.of(values).apply(values)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0), 1, rtol=1e-5)
    filled = np.where(np.isnan(values), np.nanmedian(values, axis=0), values)
    np.testing.assert_allclose(scaled, (filled - filled.mean(axis=0)) / filled.std(axis=0), atol=1e-5)


def test_columns_that_are_constant_or_mostly_missing_are_not_used():
    values, _ = drawn(7)
    values[:, 1] = 1e4
    values[: N_TRACES // 2 + 1, 4] = np.nan
    values[:, 5] = np.nan
    assert Scaling.of(values).is_used.tolist() == [True, False, True, True, False, False, True]


def test_a_folded_model_gives_the_logits_of_its_parts():
    raw, labels = drawn(7)
    raw[2, 3] = np.nan
    scaling = Scaling.of(raw)
    found = list(l2_path(scaling.apply(raw), labels))[-1]
    model = scaling.linear(found.weight, found.bias)
    np.testing.assert_allclose(model.logits(raw), scaling.apply(raw) @ found.weight + found.bias, atol=1e-9)


def test_a_trace_without_a_column_that_is_read_has_no_logit():
    used = np.array([True, False, True])
    model = LinearModel(np.zeros(3), np.zeros(3), np.array([0.0, 0.0, 2.0]), used, 0.5)
    values = np.array([[np.nan, 7.0, np.nan], [np.nan, np.nan, 1.0], [3.0, 7.0, np.nan]])
    np.testing.assert_array_equal(model.logits(values), [np.nan, 2.5, 0.5])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 200), st.integers(0, 99))
def test_a_logit_is_the_same_alone_and_among_others(n_columns, seed):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(13, n_columns)).astype(np.float32)
    model = LinearModel(*generator.normal(size=(3, n_columns)), np.ones(n_columns, bool), 0.25)
    alone = [model.logits(values[place : place + 1])[0] for place in range(13)]
    np.testing.assert_array_equal(model.logits(values), alone)
