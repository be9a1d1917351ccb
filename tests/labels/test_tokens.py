from dataclasses import replace

import numpy as np
import pytest

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.splits import Split
from graphhalu.evaluation.crossfit import visible_labels
from graphhalu.labels.planted import planted_token_traces
from graphhalu.labels.stated import label_tokens


@pytest.fixture(scope="module")
def records():
    return [trace.record for trace in planted_token_traces(4, seed=1)]


def test_tokens_that_share_a_character_with_a_span_are_hallucinated(records):
    labels = label_tokens(records)
    assert labels.is_valid.all()
    for record, values in zip(records, labels.tokens, strict=True):
        expected = [
            int(any(a < d and c < b for c, d in record.given_spans)) for a, b in record.answer_offsets
        ]
        assert values.tolist() == expected
    assert sorted(labels.values.tolist()) == [0, 0, 1, 1]


def test_an_answer_that_is_wrong_as_a_whole_has_no_valid_tokens(records):
    changed = [records[0], records[1], replace(records[2], given_label=1, given_spans=())]
    labels = label_tokens(changed)
    assert labels.is_valid.tolist() == [True, True, False]
    assert labels.reasons[2] == "wrong without spans"
    assert not labels.tokens[2].any()


def test_answers_of_the_model_itself_are_refused_with_the_way_out(records):
    with pytest.raises(NotEnoughDataError, match="--answers given"):
        label_tokens([replace(record, is_on_policy=True) for record in records])


def test_a_detector_sees_no_label_of_the_test_side(records):
    labels = label_tokens(records)
    test = np.flatnonzero(labels.values == 1)
    others = np.flatnonzero(labels.values == 0)
    seen = visible_labels(labels, Split(others[:1], others[1:], test))
    assert not any(seen.tokens[index].any() for index in test)
    assert not seen.values[test].any()
    assert all(seen.reasons[index] == "held out" for index in test)
    assert seen.is_valid.tolist() == (labels.values == 0).tolist()


def test_items_of_labels_are_traces_or_tokens_with_the_trace_that_each_belongs_to(records):
    labels = label_tokens(records)
    assert (labels.level, labels.labeller, labels.meaning) == ("token", "spans", "input")
    lengths = [record.length - record.prompt_length for record in records]
    slow = [(trace, token) for trace, length in enumerate(lengths) for token in range(length)]
    assert labels.owner.tolist() == [trace for trace, _ in slow]
    assert labels.items.tolist() == [int(labels.tokens[trace][token]) for trace, token in slow]
    chosen = [place for trace in (2, 0) for place, (owner, _) in enumerate(slow) if owner == trace]
    assert labels.places(np.array([2, 0])).tolist() == chosen
    assert labels.places(np.zeros(0, dtype=np.int64)).tolist() == []
    turned = labels.select([2, 0])
    assert turned.items.tolist() == labels.items[chosen].tolist()
    answers = replace(labels, tokens=None)
    assert (answers.level, answers.owner.tolist()) == ("answer", [0, 1, 2, 3])
    assert answers.places(np.array([3, 1])).tolist() == [3, 1]
    assert answers.items is answers.values
