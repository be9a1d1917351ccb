import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.write import CHUNK_ELEMENTS, MATRICES, chunk_shape


@given(name=st.sampled_from(sorted(ARRAYS)), fixed=st.integers(1, 131), ragged=st.integers(0, 50_000_000))
def test_a_chunk_is_small_and_pieces_of_the_ragged_axis_are_equal(name, fixed, ragged):
    spec = ARRAYS[name]
    shape = tuple(ragged if axis == spec.ragged_axis else fixed for axis in spec.axes)
    chunk = chunk_shape(spec, shape)
    elements = 1
    for size in chunk:
        elements *= size
    if chunk[spec.ragged_dim] > 1:
        assert elements <= CHUNK_ELEMENTS
    n_pieces = -(-ragged // chunk[spec.ragged_dim])
    assert n_pieces * chunk[spec.ragged_dim] - ragged < max(n_pieces, 2)
    assert all(1 <= size <= max(1, whole) for size, whole in zip(chunk, shape, strict=True))


@pytest.mark.parametrize("name", MATRICES)
def test_a_chunk_of_a_matrix_holds_one_layer(name):
    spec = ARRAYS[name]
    assert chunk_shape(spec, tuple(5 for _ in spec.axes))[0] == 1


def test_the_arrays_of_tokens_are_one_chunk_each():
    assert chunk_shape(ARRAYS["token_ids"], (64 * 8192,)) == (64 * 8192,)


@pytest.mark.parametrize("name", [*ARRAYS, "records", "record_offsets", "token_offsets"])
def test_every_array_ends_in_a_checksum(name, store):
    codecs = zarr.open_array(store.parts[0].folder / name, mode="r").metadata.to_dict()["codecs"]
    assert [codec["name"] for codec in codecs][-2:] == ["blosc", "crc32c"]


def test_the_axes_are_named_in_the_file(store):
    for name, spec in ARRAYS.items():
        array = zarr.open_array(store.parts[0].folder / name, mode="r")
        assert array.metadata.dimension_names == spec.axes
        assert array.attrs["encoding"] == spec.encoding
