import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from graphhalu.labels.labels import Labels
from graphhalu.labels.summary import (
    draw_examples,
    share_interval,
    summarise,
    summarise_categories,
    verdicts,
    wilson_interval,
)
from graphhalu.traces.schema import TraceRecord


def labels(values, is_valid=None, reasons=None, name="match", meaning="hallucinated"):
    n = len(values)
    return Labels(
        trace_ids=tuple(f"q{i}#0" for i in range(n)),
        values=np.array(values, dtype=np.int8),
        is_valid=np.ones(n, dtype=bool) if is_valid is None else np.array(is_valid, dtype=bool),
        reasons=tuple(reasons or ("why",) * n),
        labeller=name,
        meaning=meaning,
    )


def wilson(n_ones, n):
    return wilson_interval(float(n_ones), float(n))


def singles(n):
    return np.array([f"g{i}" for i in range(n)])


@given(st.integers(1, 997), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilsons_interval_is_that_of_scipy(n, share, level):
    n_ones = round(share * n)
    expected = binomtest(n_ones, n).proportion_ci(level, method="wilson")
    found = wilson_interval(float(n_ones), float(n), level)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=61))
def test_with_one_trace_a_question_the_interval_is_wilsons(values):
    found = share_interval(np.array(values), singles(len(values)))
    assert found == pytest.approx(wilson(sum(values), len(values)))


@given(st.lists(st.integers(0, 1), min_size=1, max_size=61), st.integers(1, 5))
def test_equal_answers_to_one_question_count_once(values, n_beams):
    repeated = np.repeat(values, n_beams)
    found = share_interval(repeated, np.repeat(singles(len(values)), n_beams))
    assert found == pytest.approx(wilson(sum(values), len(values)))


def test_answers_that_differ_within_questions_never_count_more_than_once_each():
    groups = np.repeat(singles(7), 2)
    # every question half: no variance between questions at all, so they are what is counted
    assert share_interval(np.array([0, 1] * 7), groups) == pytest.approx(wilson(3.5, 7))
    # one question differs: the variance alone would promise more than 14 answers
    found = share_interval(np.array([0, 1] * 6 + [1, 1]), groups)
    assert found == pytest.approx(wilson(8, 14))


def test_a_summary_counts_valid_labels_and_reasons():
    found = summarise(labels([1, 0, 0, 1, 1], [1, 1, 0, 1, 0], ["a", "b", "c", "a", "c"]), singles(5))
    assert (found["n_traces"], found["n_valid"], found["coverage"]) == (5, 3, pytest.approx(3 / 5))
    assert found["prevalence"] == pytest.approx(2 / 3)
    assert found["interval"] == pytest.approx(wilson(2, 3))
    assert found["reasons"] == {"a": 2, "c": 2, "b": 1}


def test_without_a_valid_label_there_is_no_prevalence_and_no_interval():
    found = summarise(labels([0, 0], [0, 0]), singles(2))
    assert (found["prevalence"], found["interval"], found["coverage"]) == (None, None, 0)


def test_categories_are_summed_up_each_by_itself():
    found = summarise_categories(
        labels([1, 0, 1, 1, 0], [1, 1, 1, 0, 1]), singles(5), ["b", "a", "b", "b", None]
    )
    assert list(found) == ["a", "b"]
    assert (found["a"]["n_traces"], found["a"]["prevalence"]) == (1, 0)
    assert (found["b"]["n_traces"], found["b"]["n_valid"], found["b"]["prevalence"]) == (3, 2, 1)


def test_verdicts_are_words():
    assert verdicts(labels([1, 0, 0], [1, 1, 0])) == ["hallucinated", "correct", "undecided"]


def records(n):
    return [
        TraceRecord(f"q{i}#0", f"q{i}", f"q{i}", f"Q{i}?", tuple("abcde"), f"A{i}", "", 2, 3)
        for i in range(n)
    ]


def test_examples_are_drawn_from_each_class_of_the_first_labeller():
    first = labels([i % 2 for i in range(31)], [i % 5 > 0 for i in range(31)])
    second = labels([1] * 31, name="given", meaning="input")
    drawn = draw_examples(records(31), [first, second], n=3, seed=7)
    assert [each["verdict"] for each in drawn] == [
        *["hallucinated"] * 3,
        *["correct"] * 3,
        *["undecided"] * 3,
    ]
    found = dict(zip(first.trace_ids, verdicts(first), strict=True))
    assert all(found[each["trace_id"]] == each["verdict"] for each in drawn)
    assert drawn[0]["said"] == {"match": "hallucinated (why)", "given": "input bad (why)"}
    assert drawn[0]["gold"] == ("a", "b", "c")
    assert (drawn[0]["n_gold"], drawn[0]["answer"]) == (5, f"A{drawn[0]['trace_id'][1:-2]}")


def test_the_seed_decides_which_examples_come():
    found = labels([1] * 31)
    one, same, other = (
        [each["trace_id"] for each in draw_examples(records(31), [found], n=5, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other
    assert len(set(one)) == 5


def test_fewer_answers_than_asked_for_all_come():
    assert len(draw_examples(records(3), [labels([1, 0, 0])], n=20)) == 3
    assert draw_examples(records(3), [labels([1, 0, 0])], n=0) == []
