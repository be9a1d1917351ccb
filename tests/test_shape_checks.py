"""The shapes in signatures are really checked while tests run."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from graphhalu.features.instability import head_std
from graphhalu.traces.schema import to_bfloat16_bits


def test_a_wrong_number_of_axes_is_refused():
    with pytest.raises(TypeCheckError):
        head_std(np.zeros((3, 5)))


def test_a_wrong_number_format_is_refused():
    with pytest.raises(TypeCheckError):
        to_bfloat16_bits(np.zeros(3, dtype=np.int64))
