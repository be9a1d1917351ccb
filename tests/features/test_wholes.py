"""What holds for every feature of whole matrices, on random traces."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphhalu.features.block import block_of
from graphhalu.features.registry import FEATURES
from graphhalu.traces.schema import array_spec
from tests.features.wholes import SHAPE, some_traces, whole_trace, with_arrays

MODULES = {"layer_shift", "earlier_tokens", "icr", "hidden"}
ALSO = {"mst_divergence", "head_agreement", "share_agreement"}
NAMES = [
    name
    for name, place in FEATURES._table.items()
    if place.partition(":")[0].rpartition(".")[2] in MODULES or name in ALSO or name.startswith("beam_")
]
OF_ATTENTION = [n for n in NAMES if "attention" in " ".join(FEATURES.get(n).reads)]
WITHOUT_HEADS = [name for name in OF_ATTENTION if "head" not in FEATURES.get(name).axes]

BOUNDS = {
    "hallushift_hidden_cosine": (-1, 1),
    "head_agreement": (-1, 1),
    "share_agreement": (-1, 1),
    "rauq": (1, np.inf),
    "hidden_norm": (0, np.inf),
    "hidden_shift": (0, 2),
    "hidden_cosine_mean": (-1, 1),
    "hidden_cosine_max": (-1, 1),
    "hidden_effective_rank": (1, 13),
    "hidden_score": (-np.inf, np.inf),
    "massive_activations": (0, np.inf),
    "massive_answer_activations": (0, np.inf),
    "state_last_prompt": (-np.inf, np.inf),
    "state_last_answer": (-np.inf, np.inf),
    "state_mean_answer": (-np.inf, np.inf),
    "beam_std_answer_length": (0, np.inf),
    "beam_std_logprob_mean": (0, np.inf),
    "beam_std_output_entropy_mean": (0, np.inf),
    "beam_eigenscore": (-np.inf, np.inf),
}
"""All others lie in [0, 1]."""


def beams_too(seed, **changes):
    """Traces of five sizes, and two more beams of the first question."""
    generator = np.random.default_rng(seed)
    more = [whole_trace(generator, 7, size, name="q0", beam=size, **changes) for size in (3, 4)]
    return [*some_traces(seed, **changes), *more]


def test_there_are_features_of_whole_matrices():
    assert len(NAMES) == 31
    assert len(WITHOUT_HEADS) == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_feature_has_values_on_ordinary_traces(name):
    values = FEATURES.get(name).values(block_of(beams_too(3)))

    assert np.isfinite(values[[0, 5, 6]]).any()


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("beam")])
def test_a_trace_alone_has_the_value_that_it_has_among_others(name):
    traces, feature = some_traces(3), FEATURES.get(name)

    together = feature.values(block_of(traces))
    alone = np.concatenate([feature.values(block_of([trace])) for trace in traces])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def permuted(trace, order):
    arrays = {
        name: np.take(values, order, axis=array_spec(name).axes.index("head"))
        if "head" in array_spec(name).axes
        else values
        for name, values in trace.arrays.items()
    }
    return replace(trace, arrays=arrays)


@pytest.mark.parametrize("name", NAMES)
def test_permuting_heads_permutes_the_columns(name):
    order, traces, feature = np.array([3, 0, 4, 2, 1]), beams_too(3), FEATURES.get(name)

    values = feature.values(block_of(traces))
    found = feature.values(block_of([permuted(trace, order) for trace in traces]))
    if "head" in feature.axes:
        values = np.take(values, order, axis=1 + feature.axes.index("head"))
    np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OF_ATTENTION)
def test_attention_that_is_not_a_number_is_missing_and_never_a_number(name):
    traces = some_traces(3)
    spoilt = {
        key: np.full_like(traces[0].arrays[key], np.nan)
        for key in ("attention", "edge_weight", "dropped_mass")
    }
    feature = FEATURES.get(name)

    values = feature.values(block_of([with_arrays(traces[0], **spoilt), *traces[1:]]))
    assert np.isnan(values[0]).all()
    np.testing.assert_allclose(values[1:], feature.values(block_of(traces[1:])), atol=1e-6)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.tuples(st.integers(1, 13), st.integers(1, 7)), min_size=1, max_size=3),
    only_answer_rows=st.booleans(),
    window=st.sampled_from([None, 1, 2, 5]),
)
def test_every_feature_keeps_its_bounds(seed, sizes, only_answer_rows, window):
    generator = np.random.default_rng(seed)
    shape = replace(SHAPE, layer_windows=(window, *SHAPE.layer_windows[1:]))
    traces = [
        whole_trace(
            generator,
            max(prompt, 2),
            answer,
            name="q",
            beam=beam,
            shape=shape,
            row_start=max(prompt, 2) - 1 if only_answer_rows else 0,
        )
        for beam, (prompt, answer) in enumerate(sizes)
    ]
    block = block_of(traces)

    for name in NAMES:
        values = FEATURES.get(name).values(block)
        low, high = BOUNDS.get(name, (0, 1))
        finite = values[~np.isnan(values)]
        assert ((finite >= low - 1e-5) & (finite <= high + 1e-5)).all(), (name, finite)
