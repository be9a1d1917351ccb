import numpy as np
import pytest

from graphhalu.features.block import block_of
from graphhalu.features.earlier_tokens import duplicate_mass, induction_mass
from tests.features.wholes import answer_rows, row_of, some_traces, square, visible, whole_trace, with_arrays


def slow_mass(trace, layer, offset):
    weights, ids, found = square(trace, layer), trace.token_ids, []
    for i in answer_rows(trace):
        targets = [j + offset for j in range(i - offset) if ids[j] == ids[i]]
        seen = [key for key in targets if key in visible(trace, layer, i)]
        if seen:
            found.append(row_of(trace, weights, i)[:, seen].sum(axis=1))
    return np.mean(found, axis=0) if found else np.full(5, np.nan)


@pytest.mark.parametrize(
    ("function", "offset"), [(duplicate_mass, 0), (induction_mass, 1)], ids=["same", "next"]
)
@pytest.mark.parametrize("only_answer_rows", [False, True])
def test_the_mass_is_that_of_a_loop_over_all_pairs(function, offset, only_answer_rows):
    traces = some_traces(2, only_answer_rows=only_answer_rows)
    values = function(block_of(traces))

    slow = [[slow_mass(trace, layer, offset) for layer in range(7)] for trace in traces]
    np.testing.assert_allclose(values, slow, rtol=1e-6)
    assert np.isfinite(values).any()


def test_a_head_that_copies_what_came_after_has_all_its_mass_there():
    # a b c d e | a b c d e: row 6 (b) looks at key 2 (c)
    trace = whole_trace(np.random.default_rng(1), 6, 4)
    attention = np.zeros_like(trace.arrays["attention"])
    starts = [row * (row + 1) // 2 for row in range(10)]
    attention[:, 3, [start + max(row - 4, 0) for row, start in enumerate(starts)]] = 1
    ids = np.tile(np.arange(5, dtype=np.int32), 2)
    block = block_of([with_arrays(trace, attention=attention, token_ids=ids)])

    np.testing.assert_array_equal(induction_mass(block)[0, 0], [0, 0, 0, 1, 0])
    np.testing.assert_array_equal(duplicate_mass(block)[0, 0], 0)
    # five tokens back is out of a window of 5 keys, and in one of 7
    assert np.isfinite(induction_mass(block)).all()


def test_an_answer_that_repeats_nothing_has_no_mass():
    trace = whole_trace(np.random.default_rng(1), 6, 4)
    block = block_of([with_arrays(trace, token_ids=np.arange(10, dtype=np.int32))])

    assert np.isnan(duplicate_mass(block)).all()
    assert np.isnan(induction_mass(block)).all()
