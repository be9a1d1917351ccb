from dataclasses import replace

import numpy as np
import pytest

from graphhalu.errors import NotEnoughDataError
from graphhalu.labels.tokens import label_tokens
from graphhalu.splits import Split
from graphhalu.testing.planted_tokens import planted_token_traces


@pytest.fixture(scope="module")
def records():
    return [trace.record for trace in planted_token_traces(4, seed=1)]


def test_tokens_that_share_a_character_with_a_span_are_hallucinated(records):
    labels = label_tokens(records)
    assert labels.is_valid.all()
    for record, values in zip(records, labels.values, strict=True):
        expected = [
            int(any(a < d and c < b for c, d in record.given_spans))
            for a, b in record.answer_offsets
        ]
        assert values.tolist() == expected
    assert sorted(labels.answers.tolist()) == [0, 0, 1, 1]


def test_an_answer_that_is_wrong_as_a_whole_has_no_valid_tokens(records):
    changed = [records[0], records[1], replace(records[2], given_label=1, given_spans=())]
    labels = label_tokens(changed)
    assert labels.is_valid.tolist() == [True, True, False]
    assert labels.reasons[2] == "wrong without spans"
    assert not labels.values[2].any()


def test_answers_of_the_model_itself_are_refused_with_the_way_out(records):
    with pytest.raises(NotEnoughDataError, match="--answers given"):
        label_tokens([replace(record, is_on_policy=True) for record in records])


def test_a_detector_sees_no_label_of_the_test_side(records):
    labels = label_tokens(records)
    test = np.flatnonzero(labels.answers == 1)
    others = np.flatnonzero(labels.answers == 0)
    seen = labels.visible(Split(others[:1], others[1:], test))
    assert not any(seen.values[index].any() for index in test)
    assert seen.is_valid.tolist() == (labels.answers == 0).tolist()
