"""Number formats against torch and slow loops."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from graphhalu.core.numerics import json_ready, ragged_offsets
from graphhalu.traces.schema import (
    from_bfloat16_bits,
    n_pairs,
    pack_triangle,
    to_bfloat16_bits,
    unpack_triangle,
)

# every bit pattern of float32 is a case: subnormals, infinities, both zeros
ANY_FLOATS = arrays(np.uint32, st.integers(0, 31), elements=st.integers(0, 2**32 - 1)).map(
    lambda bits: bits.view(np.float32)
)
BOTH_SIDES_OF_A_TIE = np.array(
    [1.0, 1.00390625, 1.01171875, 65504.0, 1e38, 3.4e38, -0.0, 1e-45, np.inf, -np.inf], dtype=np.float32
)


def by_torch(values):
    return torch.from_numpy(values.copy()).to(torch.bfloat16)


def looped_triangle(square, row_start):
    return [square[row, key] for row in range(square.shape[0]) for key in range(row_start + row + 1)]


@given(ANY_FLOATS)
def test_bfloat16_rounds_as_torch_does(values):
    found = from_bfloat16_bits(to_bfloat16_bits(values))
    np.testing.assert_array_equal(found, by_torch(values).float().numpy())


def test_bfloat16_ties_go_to_the_even_neighbour():
    expected = by_torch(BOTH_SIDES_OF_A_TIE).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(to_bfloat16_bits(BOTH_SIDES_OF_A_TIE), expected)
    # 1 + 2**-8 lies between 1 and 1 + 2**-7, and 1 is even
    assert from_bfloat16_bits(to_bfloat16_bits(BOTH_SIDES_OF_A_TIE))[1] == 1.0


def test_bfloat16_keeps_nan_even_when_only_its_lowest_bits_are_set():
    nans = np.array([0x7F800001, 0xFF800001, 0x7FC00000], dtype=np.uint32).view(np.float32)
    assert np.isnan(from_bfloat16_bits(to_bfloat16_bits(nans))).all()


def test_bfloat16_bits_of_values_that_are_not_contiguous():
    values = np.arange(35, dtype=np.float32).reshape(5, 7)[::2, ::3]
    np.testing.assert_array_equal(from_bfloat16_bits(to_bfloat16_bits(values)), values)


def test_massive_activations_survive_bfloat16():
    values = np.array([70_000.0, -3e38], dtype=np.float32)
    np.testing.assert_allclose(from_bfloat16_bits(to_bfloat16_bits(values)), values, rtol=2**-8)


@pytest.mark.parametrize(("length", "row_start"), [(1, 0), (7, 0), (7, 3), (11, 10)])
def test_a_packed_triangle_is_what_a_loop_over_rows_and_keys_gives(length, row_start):
    square = np.random.default_rng(0).normal(size=(3, length - row_start, length))
    packed = pack_triangle(square, row_start)
    assert packed.shape == (3, n_pairs(length, row_start))
    for head in range(3):
        assert packed[head].tolist() == looped_triangle(square[head], row_start)


@given(st.integers(1, 23), st.data())
def test_unpacking_gives_the_lower_triangle_and_exact_zeros_above(length, data):
    row_start = data.draw(st.integers(0, length - 1))
    square = np.random.default_rng(length).normal(size=(2, length - row_start, length))
    found = unpack_triangle(pack_triangle(square, row_start), length, row_start)
    np.testing.assert_array_equal(found, np.tril(square, k=row_start))


def test_rows_that_do_not_end_at_the_last_key_are_refused():
    with pytest.raises(ValueError, match=r"expected rows 2 … 6, got 3 rows and 7 keys"):
        pack_triangle(np.zeros((3, 7)), row_start=2)


def test_a_triangle_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"expected 28 pairs for rows 0 … 6, got 27"):
        unpack_triangle(np.zeros(27), 7)


def test_the_size_of_a_triangle_is_the_number_of_its_entries():
    assert [n_pairs(n) for n in range(12)] == [len(np.tril_indices(n)[0]) for n in range(12)]


def test_offsets_name_where_each_item_starts_and_the_last_one_ends():
    offsets = ragged_offsets(np.array([3, 0, 7]))
    assert offsets.tolist() == [0, 3, 3, 10]
    assert offsets.dtype == np.int64
    assert ragged_offsets(np.array([], dtype=np.int64)).tolist() == [0]


def test_json_holds_no_number_that_is_not_finite():
    values = {1: (np.float32(0.5), float("nan")), "array": np.array([1.0, np.inf]), "is": np.True_}
    found = json_ready(values)
    assert found == {"1": [0.5, None], "array": [1.0, None], "is": True}
    json.dumps(found, allow_nan=False)
