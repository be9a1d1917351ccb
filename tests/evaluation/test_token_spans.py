"""Characters and spans of called tokens: hand-computed cases, and slow loops over characters."""

from dataclasses import replace

import numpy as np
import pytest

from graphhalu.evaluation.calibration import best_character_threshold, marked_answer
from graphhalu.evaluation.detector_metrics import count_spans
from graphhalu.labels.planted import planted_token_traces

# 0123456789012345678
# Ann met Bob in Rome
WORDS = ((0, 3), (3, 7), (7, 11), (11, 14), (14, 19))


@pytest.fixture(scope="module")
def record():
    """Five words with the space before each; "Bob in" and "Rome" are marked."""
    made = planted_token_traces(1)[0].record
    return replace(
        made,
        answer="Ann met Bob in Rome",
        answer_offsets=WORDS,
        given_spans=((8, 14), (15, 19)),
        given_label=1,
    )


def called(*places):
    return np.isin(np.arange(5), places)


def test_characters_without_white_space_belong_to_one_token_each(record):
    answer = marked_answer(record)
    assert answer.size.tolist() == [3, 3, 3, 2, 4]
    assert answer.marked.tolist() == [0, 0, 3, 2, 4]
    assert answer.spans.tolist() == [[0, 0, 3, 2, 0], [0, 0, 0, 0, 4]]
    assert answer.span_size.tolist() == [5, 4]
    assert answer.n_marked == 9


def test_a_hand_computed_case(record):
    answer = marked_answer(record)
    found = count_spans(answer, called(1, 2, 4))
    # "met Bob" is half marked and so right, "Rome" is right; 3 of the 5 characters of "Bob in"
    assert found == (7, 10, 9, 2, 2, 2, 2)
    assert count_spans(answer, called(0, 3))[3:6] == (1, 2, 0)
    assert count_spans(answer, called())[:2] == (0, 0)


def test_tokens_that_share_a_character_count_it_once(record):
    bytes_of_one = replace(
        record, answer="é!", answer_offsets=((0, 1), (0, 1), (1, 2)), given_spans=((0, 1),)
    )
    answer = marked_answer(bytes_of_one)
    assert answer.size.tolist() == [1, 0, 1]
    # the second half of the letter has no character, and does not part the called span
    assert count_spans(answer, np.array([True, False, True]))[4] == 1


def test_a_span_behind_the_last_token_is_lost_and_not_found(record):
    cut = replace(record, answer_offsets=WORDS[:4])
    answer = marked_answer(cut)
    assert (answer.n_marked, answer.marked.sum()) == (9, 5)
    found = count_spans(answer, np.ones(4, dtype=bool))
    assert (found[5], found[6], found[2]) == (1, 2, 9)


def slow_counts(record, is_called):
    """Every character by itself."""
    text = record.answer
    calls, marks = set(), [set() for _ in record.given_spans]
    for (start, stop), on in zip(record.answer_offsets, is_called, strict=True):
        calls |= {at for at in range(start, stop) if on and not text[at].isspace()}
    for (start, stop), mark in zip(record.given_spans, marks, strict=True):
        mark |= {at for at in range(start, stop) if not text[at].isspace()}
    marked = set().union(*marks)
    runs, run = [], []
    for (start, stop), on in [*zip(record.answer_offsets, is_called, strict=True), ((0, 0), False)]:
        if on:
            run += [at for at in range(start, stop) if not text[at].isspace()]
        elif run:
            runs.append(run)
            run = []
    right = sum(2 * len(marked & set(each)) >= len(each) for each in runs)
    found = sum(bool(mark) and 2 * len(mark & calls) >= len(mark) for mark in marks)
    return (len(calls & marked), len(calls), len(marked), right, len(runs), found, len(marks))


def test_counts_are_those_of_a_slow_loop(record):
    generator = np.random.default_rng(3)
    for trace in planted_token_traces(11, seed=2):
        is_called = generator.random(trace.answer_length) < 0.4
        answer = marked_answer(trace.record)
        assert count_spans(answer, is_called) == slow_counts(trace.record, is_called)


def test_the_threshold_is_the_best_of_all(record):
    records = [trace.record for trace in planted_token_traces(7, seed=4)]
    answers = [marked_answer(each) for each in records]
    generator = np.random.default_rng(5)
    scores = [np.round(generator.normal(size=len(each.size)), 1) for each in answers]
    scores[0][2] = np.nan

    def f1(threshold):
        pairs = zip(answers, scores, strict=True)
        counts = [count_spans(a, np.nan_to_num(s, nan=-np.inf) >= threshold) for a, s in pairs]
        right, n_called, marked = np.array(counts)[:, :3].sum(axis=0)
        return 2 * right / (n_called + marked)

    every = np.unique(np.concatenate(scores))
    every = every[np.isfinite(every)]
    assert f1(best_character_threshold(np.concatenate(scores), answers)) == max(f1(each) for each in every)


def test_nothing_is_called_where_nothing_is_marked(record):
    plain = marked_answer(replace(record, given_spans=()))
    assert best_character_threshold(np.arange(5.0), [plain]) is None
    assert best_character_threshold(np.full(5, np.nan), [marked_answer(record)]) is None
