from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from graphhalu.core.errors import UsageError
from graphhalu.features.block import block_of
from graphhalu.features.instability import head_agreement, layer_correlation, share_agreement
from tests.features.wholes import (
    SHAPE,
    answer_rows,
    row_of,
    some_traces,
    square,
    visible,
    whole_trace,
    with_arrays,
)


def mean_correlation(vectors):
    """Mean over pairs of those that vary; None if there is no pair."""
    varying = [vector for vector in vectors if np.ptp(vector) > 0]
    pairs = [np.corrcoef(a, b)[0, 1] for a, b in combinations(varying, 2)]
    return np.mean(pairs) if pairs else None


def slow_agreement(trace, layer):
    weights = square(trace, layer)
    found = []
    for row in answer_rows(trace):
        value = mean_correlation(row_of(trace, weights, row)[:, visible(trace, layer, row)])
        if value is not None:
            found.append(value)
    return np.mean(found) if found else np.nan


@pytest.mark.parametrize("only_answer_rows", [False, True])
def test_head_agreement_is_the_mean_correlation_over_visible_keys(only_answer_rows):
    traces = some_traces(2, only_answer_rows=only_answer_rows)
    values = head_agreement(block_of(traces))

    slow = [[slow_agreement(trace, layer) for layer in range(7)] for trace in traces]
    np.testing.assert_allclose(values, slow, rtol=1e-6)


def test_equal_heads_agree_fully():
    trace = whole_trace(np.random.default_rng(1), 5, 3)
    attention = np.repeat(trace.arrays["attention"][:, :1], 5, axis=1)

    values = head_agreement(block_of([with_arrays(trace, attention=attention)]))
    np.testing.assert_allclose(values, 1, rtol=1e-9)


def test_a_head_that_pays_all_keys_the_same_is_left_out():
    trace = whole_trace(np.random.default_rng(1), 5, 1)
    attention = trace.arrays["attention"].copy()
    attention[:, 2] = 0.2
    changed = with_arrays(trace, attention=attention)

    values = head_agreement(block_of([changed]))[0]
    np.testing.assert_allclose(values, [slow_agreement(changed, la) for la in range(7)], rtol=1e-6)


def test_heads_that_all_pay_the_same_have_no_agreement():
    trace = whole_trace(np.random.default_rng(1), 5, 1)
    attention = np.full_like(trace.arrays["attention"], 0.2)

    assert np.isnan(head_agreement(block_of([with_arrays(trace, attention=attention)]))).all()


def slow_share(trace, code):
    mass = trace.stream("span_mass").astype(np.float64)
    found = []
    for row in answer_rows(trace):
        # 7 layers: from int(1.75) to int(6.3), those that reach the first token
        layers = [la for la in range(1, 6) if visible(trace, la, row).start == 0]
        at = mass[layers, :, row - trace.record.row_start]
        value = mean_correlation((at[..., code] / at[..., :5].sum(-1)).T)
        if value is not None:
            found.append(value)
    return np.mean(found) if found else np.nan


@pytest.mark.parametrize(("span", "code"), [("bos", 0), ("system", 1), ("question", 3)])
def test_share_agreement_correlates_the_heads_over_the_middle_layers(span, code):
    traces = some_traces(3, only_answer_rows=True)

    values = share_agreement(block_of(traces), span=span)
    slow = [slow_share(trace, code) for trace in traces]
    np.testing.assert_allclose(values, slow, rtol=1e-6, atol=1e-12)


def test_a_span_that_no_prompt_has_gives_no_agreement():
    assert np.isnan(share_agreement(block_of(some_traces(3)), span="context")).all()


@pytest.mark.parametrize("span", ["answer", "Question", ""])
def test_only_spans_of_the_prompt_have_a_share(span):
    with pytest.raises(UsageError, match="span of the prompt"):
        share_agreement(block_of(some_traces(3)), span=span)


def test_one_layer_or_one_head_has_no_correlation(share):
    everything = np.ones((5, 17), dtype=bool)

    assert not layer_correlation(share[:1], everything[:1])[1].any()
    assert not layer_correlation(share[:, :1], everything)[1].any()


def test_a_model_with_one_head_has_no_agreement():
    shape = replace(SHAPE, n_heads=1, n_kv_heads=1)

    assert np.isnan(head_agreement(block_of(some_traces(3, shape)))).all()
