import numpy as np
import pytest

from graphhalu.core.errors import UsageError
from graphhalu.features.block import block_of
from graphhalu.features.sinks import mean_sink_mass, row_sink_share


def sink_mass(trace, n_sink=4):
    return mean_sink_mass(block_of([trace]).all_rows, n_sink)[0]


def slow_sink_mass(trace, n_sink=4):
    """Loop over everything; a row counts if it comes after the sink and sees all of it."""
    keys = np.asarray(trace.arrays["sink_keys"], dtype=np.float64)
    result = np.full(keys.shape[:2], np.nan)
    for layer, window in enumerate(trace.shape.layer_windows):
        for head in range(keys.shape[1]):
            found = []
            for row in range(keys.shape[2]):
                position = row + trace.record.row_start
                sees = window is None or position - window + 1 <= 0
                if position >= n_sink and sees:
                    found.append(min(1.0, sum(keys[layer, head, row, k] for k in range(n_sink))))
            if found:
                result[layer, head] = sum(found) / len(found)
    return result


@pytest.mark.parametrize("n_sink", [1, 2, 3, 4])
def test_sink_mass_is_the_mean_over_the_rows_after_the_sink(trace, n_sink):
    np.testing.assert_allclose(sink_mass(trace, n_sink), slow_sink_mass(trace, n_sink), rtol=1e-12)


def test_sink_mass_leaves_out_rows_that_a_window_keeps_from_the_sink(trace, change):
    windowed = change(trace, shape={"layer_windows": (None, 7, 5, 13, 11)})

    np.testing.assert_allclose(sink_mass(windowed), slow_sink_mass(windowed), rtol=1e-12)
    assert not np.allclose(sink_mass(windowed)[1], sink_mass(trace)[1])


def test_a_layer_without_any_such_row_has_no_sink_mass(trace, change):
    windowed = change(trace, shape={"layer_windows": (None, 4, None, None, None)})

    assert np.isnan(sink_mass(windowed)[1]).all()
    assert np.isfinite(sink_mass(windowed)[[0, 2, 3, 4]]).all()


def test_sink_mass_counts_positions_when_only_late_rows_are_stored(trace, change):
    keys = trace.arrays["sink_keys"][:, :, 2:]
    cut = change(trace, record={"row_start": 2}, sink_keys=keys)

    np.testing.assert_allclose(sink_mass(cut), sink_mass(trace), rtol=1e-12)


@pytest.mark.parametrize("n_sink", [0, 5])
def test_only_as_many_sink_keys_as_are_stored_can_be_asked_for(trace, n_sink):
    with pytest.raises(UsageError, match="1 to 4"):
        sink_mass(trace, n_sink)


def test_a_share_that_half_precision_lifts_above_one_is_cut_to_one(trace, change):
    keys = np.full(trace.arrays["sink_keys"].shape, 0.2502, dtype=np.float16)
    assert keys.astype(float).sum(-1).max() > 1

    rows = block_of([change(trace, sink_keys=keys)]).all_rows
    assert row_sink_share(rows).values.max() == 1


def spoilt(trace, change, row, value):
    keys = trace.arrays["sink_keys"].copy()
    keys[2, 1, row, 3] = value
    return change(trace, sink_keys=keys)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_leaves_its_head_without_a_sink_mass(trace, change, value):
    is_missing = np.isnan(sink_mass(spoilt(trace, change, 11, value)))
    assert np.argwhere(is_missing).tolist() == [[2, 1]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_does_not_count_cannot_spoil_the_others(trace, change, value):
    faulty = spoilt(trace, change, 2, value)

    np.testing.assert_array_equal(sink_mass(faulty), sink_mass(trace))
