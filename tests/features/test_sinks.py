import numpy as np
import pytest

from graphhalu.errors import NonFiniteError, NotEnoughDataError, UsageError
from graphhalu.features.sinks import scalar_sink_mass, sink_mass, sink_share


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


def test_scalar_sink_mass_is_the_mean_over_layers_and_heads_that_have_one(trace, change):
    windowed = change(trace, shape={"layer_windows": (None, 4, None, None, None)})

    expected = sink_mass(trace)[[0, 2, 3, 4]].mean()
    assert scalar_sink_mass(windowed) == pytest.approx(expected, rel=1e-12)


def test_scalar_sink_mass_refuses_a_trace_without_a_row_that_counts(trace, change):
    blind = change(trace, shape={"layer_windows": (1, 2, 3, 4, 1)})

    with pytest.raises(NotEnoughDataError, match="no sink mass"):
        scalar_sink_mass(blind)


@pytest.mark.parametrize("n_sink", [0, 5])
def test_only_as_many_sink_keys_as_are_stored_can_be_asked_for(trace, n_sink):
    with pytest.raises(UsageError, match="1 to 4"):
        sink_mass(trace, n_sink)


def test_a_share_that_half_precision_lifts_above_one_is_cut_to_one(trace, change):
    keys = np.full(trace.arrays["sink_keys"].shape, 0.2502, dtype=np.float16)
    assert keys.astype(float).sum(-1).max() > 1

    assert sink_share(change(trace, sink_keys=keys)).values.max() == 1


def spoilt(trace, change, row, value):
    keys = trace.arrays["sink_keys"].copy()
    keys[2, 1, row, 3] = value
    return change(trace, sink_keys=keys)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_an_error_that_names_layer_head_and_row(trace, change, value):
    with pytest.raises(NonFiniteError, match="layer 2, head 1, row 11"):
        scalar_sink_mass(spoilt(trace, change, 11, value))


def test_the_layer_of_a_value_that_is_not_finite_is_its_number_in_the_model(trace, change):
    kept = change(spoilt(trace, change, 11, np.nan), shape={"attention_layers": (2, 3, 19, 23, 29)})

    with pytest.raises(NonFiniteError, match="layer 19"):
        sink_mass(kept)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_does_not_count_cannot_spoil_the_others(trace, change, value):
    faulty = spoilt(trace, change, 2, value)

    np.testing.assert_array_equal(sink_mass(faulty), sink_mass(trace))
