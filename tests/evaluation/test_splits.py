import numpy as np
import pytest

from graphhalu.errors import NotEnoughDataError, UsageError
from graphhalu.evaluation.splits import (
    check_folds,
    cross_fit_folds,
    question_groups,
    single_split,
    visible_labels,
)
from graphhalu.splits import Split


@pytest.fixture
def case():
    rng = np.random.default_rng(1)
    labels = (rng.random(211) < 0.4).astype(np.int64)
    return labels, np.array([f"g{i}" for i in rng.integers(83, size=211)]), rng.random(211) < 0.9


def test_folds_test_every_valid_trace_once_and_no_invalid_one(case):
    labels, groups, is_valid = case
    folds = cross_fit_folds(labels, groups, is_valid, n_folds=7, seed=3)
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested.tolist()) == np.flatnonzero(is_valid).tolist()
    for fold in folds:
        everything = np.concatenate([fold.train, fold.validation, fold.test])
        assert sorted(everything.tolist()) == np.flatnonzero(is_valid).tolist()


def test_a_single_split_covers_the_valid_traces_once(case):
    labels, groups, is_valid = case
    (split,) = single_split(labels, groups, is_valid, seed=3)
    everything = np.concatenate([split.train, split.validation, split.test])
    assert sorted(everything.tolist()) == np.flatnonzero(is_valid).tolist()


def test_a_planted_leak_between_train_and_test_is_refused_and_names_the_pair():
    leaky = Split(np.array([0, 1]), np.array([2]), np.array([3, 4]))
    groups = np.array(["a", "b", "c", "d", "b"])
    with pytest.raises(UsageError, match=r"fold 0: .*'b'.*trace 1 is in train, trace 4 is in test"):
        check_folds([leaky], groups)


def test_a_question_that_two_folds_test_is_refused_and_names_the_pair():
    folds = [
        Split(np.array([2]), np.array([3]), np.array([0])),
        Split(np.array([2]), np.array([3]), np.array([1])),
    ]
    with pytest.raises(UsageError, match=r"group 'a': trace 0 in fold 0, trace 1 in fold 1"):
        check_folds(folds, np.array(["a", "a", "b", "c"]))


def test_one_class_among_the_valid_labels_is_refused(case):
    labels, groups, _ = case
    with pytest.raises(NotEnoughDataError, match="0 hallucinated"):
        cross_fit_folds(labels, groups, labels == 0)


def test_no_valid_label_is_refused(case):
    labels, groups, _ = case
    with pytest.raises(NotEnoughDataError, match="among 0 valid labels"):
        single_split(labels, groups, np.zeros(211, dtype=bool))


def test_groups_are_those_of_the_traces(toys):
    traces = [toys.trace(i, group=group) for i, group in enumerate("abac")]
    assert question_groups(traces).tolist() == ["a", "b", "a", "c"]


def test_groups_that_ask_the_same_question_are_merged_through_chains(toys):
    traces = [
        toys.trace(0, group="a", question="Who wrote  Faust?"),
        toys.trace(1, group="b", question="who wrote faust?"),
        toys.trace(2, group="b", question="Who was Goethe?"),
        toys.trace(3, group="c", question="Who was goethe?"),
        toys.trace(4, group="d", question="Who was Schiller?"),
    ]
    assert question_groups(traces).tolist() == ["a", "a", "a", "a", "d"]


def test_one_question_on_two_contexts_is_two_questions(toys):
    traces = [
        toys.trace(0, question="In which year?", context="Of Rome."),
        toys.trace(1, question="In which year?", context="Of Athens."),
    ]
    assert len(set(question_groups(traces).tolist())) == 2


def test_labels_of_the_test_side_are_taken_away_with_their_reasons(toys):
    labels = toys.labels([1, 0, 1, 1, 0], is_valid=[True, True, True, True, False])
    seen = visible_labels(labels, Split(np.array([0, 4]), np.array([1]), np.array([2, 3])))
    assert seen.values.tolist() == [1, 0, 0, 0, 0]
    assert seen.is_valid.tolist() == [True, True, False, False, False]
    assert seen.reasons == ("no alias", "alias", "held out", "held out", "alias")
    assert labels.values.tolist() == [1, 0, 1, 1, 0]
