import numpy as np
import pytest

from graphhalu.core.errors import NonFiniteError
from graphhalu.detectors.base import Scores
from graphhalu.detectors.scalars import ScalarDetector
from graphhalu.scoring.explain import explain
from graphhalu.traces.trace import Trace, without_tokens


@pytest.fixture(scope="module")
def trace(trained):
    return max(trained.store, key=lambda trace: trace.length - trace.prompt_length)


def test_a_token_contributes_what_the_score_loses_without_it(scorer, trace):
    found = explain(scorer.detector, trace)
    assert len(found.tokens) == trace.length - trace.prompt_length
    for place, contribution in enumerate(found.tokens):
        left = scorer.detector.score([without_tokens(trace, [trace.prompt_length + place])])
        assert contribution == pytest.approx(found.score - left.values[0])


def test_an_explanation_is_the_same_each_time(scorer, trace):
    one, two = explain(scorer.detector, trace, seed=3), explain(scorer.detector, trace, seed=3)
    assert one.fidelity == two.fidelity
    assert one.parts.heads.sum() + one.parts.rest == pytest.approx(one.score)


def test_the_rank_is_the_share_of_random_choices_that_change_less(trace):
    class Stated(ScalarDetector):
        """Its scores are stated: of the trace, without each token, and without several tokens."""

        def score(self, traces):
            n_tokens = trace.length - trace.prompt_length
            changes = [0.5, *5 * [0.1, 0.5, 0.7, 0.2]]
            values = {1: [1.0], n_tokens: np.arange(n_tokens), 21: 1 - np.array(changes)}
            return Scores.of(np.array(values[len(traces)], dtype=np.float64))

        def attribute(self, trace):
            return None

    found = explain(object.__new__(Stated), trace).fidelity
    assert found["change"] == pytest.approx(0.5)
    assert found["random_mean"] == pytest.approx(0.375)
    assert found["rank"] == pytest.approx((2 + 0.5) / 4)


def test_what_has_no_score_is_not_explained(scorer, trace):
    blind = Trace(trace.record, trace.shape, {"span_code": trace.span_code})
    with pytest.raises(NonFiniteError, match="no score"):
        explain(scorer.detector, blind)
