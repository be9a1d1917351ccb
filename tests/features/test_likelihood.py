import math

import numpy as np
import pytest

from graphhalu.features import likelihood
from graphhalu.features.block import block_of

FEATURES = [
    likelihood.perplexity,
    likelihood.logprob_mean,
    likelihood.logprob_min,
    likelihood.logprob_sum,
    likelihood.output_entropy_mean,
    likelihood.margin_mean,
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
    block = block_of([known])
    assert likelihood.logprob_sum(block)[0] == -3.75
    assert likelihood.logprob_mean(block)[0] == -1.25
    assert likelihood.logprob_min(block)[0] == -2.0
    assert likelihood.output_entropy_mean(block)[0] == pytest.approx(1.75 / 3)
    assert likelihood.margin_mean(block)[0] == 0.25
    assert likelihood.perplexity(block)[0] == pytest.approx(math.exp(1.25))


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_an_answer_with_a_value_that_is_not_finite_has_no_likelihood(known, change, feature, value):
    names = ("token_logprob", "token_entropy", "top1_margin")
    streams = {name: known.arrays[name].copy() for name in names}
    for values in streams.values():
        values[15] = value

    assert np.isnan(feature.values(block_of([change(known, **streams)]))).all()


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_an_empty_answer_has_no_likelihood(known, change, feature):
    empty = change(known, record={"prompt_length": 17})
    assert np.isnan(feature.values(block_of([empty]))).all()


def test_a_perplexity_beyond_a_float_is_missing(known, change):
    hopeless = np.full(17, -1000.0, dtype=np.float32)
    block = block_of([change(known, token_logprob=hopeless)])
    assert np.isnan(likelihood.perplexity.values(block)).all()
