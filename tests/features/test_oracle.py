"""Every feature equals a slow loop over complete attention, and keeps its bounds."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphhalu.features.block import block_of
from graphhalu.features.registry import FEATURES
from tests.features.oracle import NAMES, OF_HEAD, OF_ROW_HEAD, SHAPE, expected, random_case

CLOSE = {"rtol": 4e-3, "atol": 2e-3}
"""The streams are half precision, the loops run in double."""

BOUNDS = {
    "head_std": (0, 0.5),
    "layer_std": (0, 0.5),
    "head_logit": (0, np.inf),
    "head_bounded": (0, 1),
    "self_attention_log": (np.log(1e-12) - 1e-3, 0),
    "logprob_std": (0, np.inf),
    "logprob": (-np.inf, 0),
    "token_logprob": (-np.inf, 0),
    "perplexity": (1, np.inf),
    "output_entropy": (0, np.inf),
    "token_output_entropy": (0, np.inf),
    "answer_length": (1, 8),
    "prompt_length": (7, 23),
    "sink_count": (0, 31),
    "lapeig": (-1, 1),
    "token_head_std": (0, 0.5),
}
"""By the longest matching beginning of the name; all others lie in [0, 1]."""


@pytest.fixture(scope="module")
def cases():
    generator = np.random.default_rng(7)
    return [
        random_case(generator, f"q{index}", only_answer_rows=index % 3 == 2, spans=index != 1)
        for index in range(6)
    ]


def test_every_stream_feature_of_these_modules_has_an_oracle():
    modules = {"sinks", "spectral", "row_statistics", "instability", "likelihood"}
    others = {"mst_divergence", "head_agreement", "share_agreement"}
    table = {name: FEATURES._table[name].rpartition(":")[0] for name in FEATURES._table}
    ours = {name for name, module in table.items() if module.rpartition(".")[2] in modules}
    ours = {name for name in ours - others if not name.startswith("beam_")}

    assert len(NAMES) > 50
    assert ours == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_feature_equals_a_slow_loop_over_complete_attention(name, cases):
    feature = FEATURES.get(name)
    values = feature.values(block_of([case.trace for case in cases]))

    loops = [expected(name, case) for case in cases]
    loop = np.stack(loops) if feature.level == "trace" else np.concatenate(loops)
    assert values.shape == loop.shape
    np.testing.assert_array_equal(np.isnan(values), np.isnan(loop))
    np.testing.assert_allclose(values, loop, **CLOSE)


def test_the_random_traces_have_values_for_every_feature(cases):
    block = block_of([case.trace for case in cases])

    missing = [name for name in NAMES if np.isnan(FEATURES.get(name).values(block)).all()]
    assert missing == []


@pytest.mark.parametrize("name", [*OF_HEAD, *OF_ROW_HEAD])
def test_permuting_heads_permutes_the_columns(name, cases):
    # heads trade places within the two key-value heads, and these do too
    order = np.array([5, 3, 4, 1, 0, 2])
    feature = FEATURES.get(name)
    values = feature.values(block_of([case.trace for case in cases]))
    permuted = feature.values(block_of([_permuted(case.trace, order) for case in cases]))
    np.testing.assert_allclose(permuted, np.take(values, order, axis=2), rtol=1e-5, atol=1e-7)


def _permuted(trace, order):
    from dataclasses import replace

    from graphhalu.traces.schema import array_spec

    arrays = {}
    for name, values in trace.arrays.items():
        axes = array_spec(name).axes
        if "head" in axes:
            values = np.take(values, order, axis=axes.index("head"))
        elif "kv_head" in axes:
            values = np.take(values, order[::3] // 3, axis=axes.index("kv_head"))
        arrays[name] = values
    return replace(trace, arrays=arrays)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), only_answer_rows=st.booleans(), spans=st.booleans())
def test_every_feature_keeps_its_bounds(seed, only_answer_rows, spans):
    generator = np.random.default_rng(seed)
    case = random_case(generator, only_answer_rows=only_answer_rows, spans=spans)
    block = block_of([case.trace])

    for name in NAMES:
        values = FEATURES.get(name).values(block)
        low, high = _bounds(name)
        finite = values[~np.isnan(values)]
        assert ((finite >= low - 1e-3) & (finite <= high + 1e-3)).all(), (name, finite)


def _bounds(name):
    fitting = [prefix for prefix in BOUNDS if name.startswith(prefix)]
    return BOUNDS[max(fitting, key=len)] if fitting else (0, 1)


def test_eigenvalues_of_the_laplacian_are_those_of_the_general_solver(cases):
    case = cases[0]
    assert case.trace.record.row_start == 0
    values = FEATURES.get("lapeig_top").values(block_of([case.trace]), k=case.S)[0]

    for layer, window in enumerate(SHAPE.layer_windows):
        n_rows = [min(case.S - j, window or case.S) for j in range(case.S)]
        for head in range(6):
            received = case.A[layer, head].sum(0)
            laplacian = np.diag(received / n_rows) - case.A[layer, head]
            solved = np.sort(np.linalg.eigvals(laplacian).real)[::-1]
            np.testing.assert_allclose(values[layer, head], solved, atol=2e-3)
