import pytest

from graphhalu.core.errors import StoreFullError
from graphhalu.traces.disk import check_fits, estimate_bytes
from graphhalu.traces.schema import ARRAYS


def test_the_bound_is_what_the_arrays_take_in_memory(toys):
    traces = [toys.trace(f"q{n}", n) for n in (2, 7, 13)]
    lengths = [trace.length for trace in traces]
    for name in ARRAYS:
        held = sum(trace.arrays[name].nbytes for trace in traces)
        assert estimate_bytes(toys.SHAPE, [name], lengths, is_compressed=False) == held


def test_the_expectation_is_below_the_bound(toys):
    bound = estimate_bytes(toys.SHAPE, tuple(ARRAYS), [7, 13], is_compressed=False)
    assert 0.8 * bound < estimate_bytes(toys.SHAPE, tuple(ARRAYS), [7, 13]) < bound


def test_a_run_that_fits_is_let_through_even_below_folders_that_are_not_there(tmp_path):
    check_fits(tmp_path / "new" / "folder" / "a.zarr", 1)


def test_a_run_that_does_not_fit_is_told_how_much_is_free_and_what_to_do(tmp_path):
    with pytest.raises(StoreFullError, match=r"need about 1024\.0 GiB, and .* GiB are free.*\n.*--o"):
        check_fits(tmp_path / "a.zarr", 2**40)
