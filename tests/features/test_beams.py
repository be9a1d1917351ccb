import statistics
from dataclasses import replace

import numpy as np
import pytest

from graphhalu.features.block import block_of
from graphhalu.features.likelihood import (
    beam_eigenscore,
    beam_groups,
    beam_spread,
    beam_std_answer_length,
    beam_std_sink_mass_k4,
    eigenscore,
    middle_state,
)
from graphhalu.features.registry import FEATURES
from tests.features.wholes import SHAPE, whole_trace, with_arrays, without


@pytest.fixture(scope="module")
def traces():
    """Three beams of one question, one of another, two of a third, and two given answers."""
    generator = np.random.default_rng(11)
    asked = [("a", 0), ("b", 0), ("a", 1), ("c", 0), ("a", 2), ("c", 1)]
    found = [
        whole_trace(generator, 7, 2 + 3 * place, name=name, beam=beam)
        for place, (name, beam) in enumerate(asked)
    ]
    given = [whole_trace(generator, 7, 5, name="a", beam=place, on_policy=False) for place in (3, 4)]
    return [*found, *given]


def test_beams_are_grouped_by_question_and_given_answers_are_no_beams(traces):
    assert beam_groups(block_of(traces)).tolist() == [0, 1, 0, 2, 0, 2, -1, -1]


def test_the_spread_is_the_std_over_the_beams_of_the_question(traces):
    values = beam_std_answer_length.values(block_of(traces))

    of_a, of_c = statistics.pstdev([2, 8, 14]), statistics.pstdev([11, 17])
    expected = [of_a, np.nan, of_a, of_c, of_a, of_c, np.nan, np.nan]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_the_spread_of_a_feature_of_heads_is_taken_head_by_head(traces):
    values = beam_std_sink_mass_k4.values(block_of(traces))

    single = FEATURES.get("sink_mass_k4").values(block_of(traces)).astype(np.float64)
    for beams in ([0, 2, 4], [3, 5]):
        known = np.isfinite(single[beams])
        alone = np.where(known.sum(axis=0) > 1, np.nanstd(single[beams], axis=0), np.nan)
        for beam in beams:
            np.testing.assert_allclose(values[beam], alone, rtol=1e-5, atol=1e-8)
    assert np.isfinite(values[0]).any()
    assert np.isnan(values[[1, 6, 7]]).all()


def test_a_beam_without_a_value_is_left_out_and_one_value_has_no_spread():
    values = np.array([[1.0, 1.0], [3.0, np.nan], [np.nan, np.nan]])

    spread = beam_spread(values, np.zeros(3, dtype=np.int64))
    np.testing.assert_array_equal(spread, [[1, np.nan]] * 3)


def test_eigenscore_is_the_mean_log_eigenvalue_of_the_covariance():
    embedding = np.random.default_rng(1).normal(size=(3, 13))
    centred = embedding - embedding.mean(axis=1, keepdims=True)
    covariance = centred @ centred.T / 12 + 0.001 * np.eye(3)

    expected = np.mean(np.log(np.linalg.eigvalsh(covariance)))
    assert eigenscore(embedding) == pytest.approx(expected)


def test_beams_that_say_the_same_have_a_lower_score_than_beams_that_differ():
    one, other = np.random.default_rng(1).normal(size=(2, 13))

    assert eigenscore(np.stack([one, one])) < eigenscore(np.stack([one, other]))


@pytest.mark.parametrize("dropped", [(), ("hidden",)], ids=["all states", "rows alone"])
def test_the_score_of_beams_reads_the_last_token_in_the_middle_layer(traces, dropped):
    values = beam_eigenscore(block_of([without(trace, *dropped) for trace in traces]))

    assert middle_state(block_of(traces)) == 3
    last = [trace.hidden(3)[-1].astype(np.float64) for trace in traces]
    of_a = eigenscore(np.stack([last[0], last[2], last[4]]))
    of_c = eigenscore(np.stack([last[3], last[5]]))
    expected = [of_a, np.nan, of_a, of_c, of_a, of_c, np.nan, np.nan]
    np.testing.assert_allclose(values, expected, rtol=1e-9)


def test_a_state_that_is_not_a_number_leaves_its_question_missing(traces):
    hidden = traces[2].arrays["hidden"].copy()
    hidden[3, -1, 4] = 0x7FC0
    changed = [*traces]
    changed[2] = with_arrays(traces[2], hidden=hidden)

    values = beam_eigenscore(block_of(changed))
    assert np.isfinite(values).tolist() == [False, False, False, True, False, True, False, False]


def test_the_nearest_kept_layer_stands_for_the_middle():
    generator = np.random.default_rng(1)
    kept = replace(SHAPE, hidden_layers=(0, 1, 6, 7))

    assert middle_state(block_of([whole_trace(generator, shape=kept)])) == 1
