import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from graphhalu.core.errors import StoreMismatchError
from graphhalu.labels.labels import Labels
from graphhalu.labels.summary import agreement, cohen_kappa, threshold_sweep


def labels(values, is_valid=None, name="match", meaning="hallucinated"):
    n = len(values)
    return Labels(
        trace_ids=tuple(f"q{i}#0" for i in range(n)),
        values=np.array(values, dtype=np.int8),
        is_valid=np.ones(n, dtype=bool) if is_valid is None else np.array(is_valid, dtype=bool),
        reasons=("",) * n,
        labeller=name,
        meaning=meaning,
    )


PAIRS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=61)


@given(PAIRS)
def test_kappa_is_that_of_scikit_learn_where_both_classes_occur(pairs):
    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    assume(len(set(first.tolist())) == len(set(second.tolist())) == 2)
    found = cohen_kappa(first, second)
    assert found["value"] == pytest.approx(cohen_kappa_score(first, second))
    assert found["reason"] is None


def test_kappa_of_a_case_by_hand():
    # 20 + 15 of 50 equal: 0.7; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5; (0.7 - 0.5) / 0.5
    first = np.repeat([1, 1, 0, 0], [20, 5, 10, 15])
    second = np.repeat([1, 0, 1, 0], [20, 5, 10, 15])
    assert cohen_kappa(first, second)["value"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ([1, 1, 1], [1, 0, 1], "match gives one class only"),
        ([1, 0, 1], [0, 0, 0], "rouge gives one class only"),
        ([1, 1], [1, 1], "match gives one class only"),
        ([], [], "no answer is valid for both"),
    ],
)
def test_without_two_classes_there_is_no_kappa_but_a_reason(first, second, reason):
    one, other = (np.array(values, dtype=np.int64) for values in (first, second))
    assert cohen_kappa(one, other, ("match", "rouge")) == {"value": None, "reason": reason}


@given(PAIRS, st.integers(0, 2**32 - 1))
def test_agreement_looks_at_answers_that_both_could_decide(pairs, seed):
    first, second = zip(*pairs, strict=True)
    masks = np.random.default_rng(seed).random((2, len(pairs))) < 0.7
    found = agreement(labels(first, masks[0]), labels(second, masks[1], "rouge"))
    both = masks.all(axis=0)
    assert found["n_both"] == int(both.sum())
    one, other = np.array(first)[both], np.array(second)[both]
    if found["n_both"]:
        np.testing.assert_array_equal(found["confusion"], confusion_matrix(one, other, labels=[0, 1]))
        assert found["share"] == pytest.approx((one == other).mean())
    else:
        assert (found["share"], found["kappa"]["value"]) == (None, None)


def test_labels_of_other_traces_are_refused():
    with pytest.raises(StoreMismatchError, match=r"'match' and 'rouge' .* traces \(3 and 2\)"):
        agreement(labels([0, 1, 1]), labels([0, 1], name="rouge"))


def test_two_meanings_are_told():
    assert agreement(labels([0, 1]), labels([0, 1]))["is_one_meaning"]
    assert not agreement(labels([0, 1]), labels([0, 1], meaning="input"))["is_one_meaning"]


def test_a_sweep_gives_prevalence_and_kappa_of_each_threshold():
    scores = np.array([0.0, 0.25, 0.5, 0.75, 1.0, np.nan, 0.5])
    is_decided = np.array([True, True, True, True, True, False, True])
    reference = labels([1, 1, 0, 0, 0, 0, 1], [True, True, True, True, True, True, False])
    rows = threshold_sweep(scores, is_decided, reference, (0.2, 0.5, 0.9))
    assert [row["prevalence"] for row in rows] == pytest.approx([1 / 6, 2 / 6, 5 / 6])
    assert [row["n_both"] for row in rows] == [5, 5, 5]
    expected = [
        cohen_kappa_score([1, 1, 0, 0, 0], [int(score < t) for score in scores[:5]]) for t in (0.2, 0.5, 0.9)
    ]
    assert [row["kappa"]["value"] for row in rows] == pytest.approx(expected)
    assert expected[1] == 1


def test_a_threshold_that_sorts_all_into_one_class_has_no_kappa():
    scores = np.array([0.5, 0.75])
    (row,) = threshold_sweep(scores, np.array([True, True]), labels([0, 1]), [0.9])
    assert row["kappa"] == {"value": None, "reason": "the threshold gives one class only"}


def test_without_a_score_there_is_no_sweep():
    assert threshold_sweep(np.array([np.nan]), np.array([False]), labels([1]), [0.5]) == []
