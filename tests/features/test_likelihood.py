import math

import numpy as np
import pytest

from graphhalu.errors import NonFiniteError, NotEnoughDataError
from graphhalu.features import likelihood

FUNCTIONS = [
    likelihood.perplexity,
    likelihood.mean_logprob,
    likelihood.min_logprob,
    likelihood.sum_logprob,
    likelihood.mean_entropy,
    likelihood.mean_margin,
]


@pytest.fixture
def known(trace, change):
    """Three answer tokens with known values; the prompt's values must not count."""

    def stream(*answer):
        values = np.full(17, 99.0, dtype=np.float32)
        values[0] = np.nan
        values[14:] = answer
        return values

    return change(
        trace,
        record={"prompt_length": 14},
        token_logprob=stream(-0.5, -2.0, -1.25),
        token_entropy=stream(1.0, 0.25, 0.5),
        top1_margin=stream(0.5, 0.0, 0.25),
    )


def test_the_values_are_those_of_the_answer_tokens(known):
    assert likelihood.sum_logprob(known) == -3.75
    assert likelihood.mean_logprob(known) == -1.25
    assert likelihood.min_logprob(known) == -2.0
    assert likelihood.mean_entropy(known) == pytest.approx(1.75 / 3)
    assert likelihood.mean_margin(known) == 0.25
    assert likelihood.perplexity(known) == pytest.approx(math.exp(1.25))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_value_that_is_not_finite_is_an_error_that_names_the_token(
    known, change, function, value
):
    names = ("token_logprob", "token_entropy", "top1_margin")
    streams = {name: known.arrays[name].copy() for name in names}
    for values in streams.values():
        values[15] = value

    with pytest.raises(NonFiniteError, match="at token 15"):
        function(change(known, **streams))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_an_empty_answer_has_no_likelihood(known, change, function):
    with pytest.raises(NotEnoughDataError, match="empty answer"):
        function(change(known, record={"prompt_length": 17}))


def test_a_perplexity_beyond_a_float_is_an_error(known, change):
    hopeless = np.full(17, -1000.0, dtype=np.float32)

    with pytest.raises(NonFiniteError, match="beyond a float"):
        likelihood.perplexity(change(known, token_logprob=hopeless))
