import numpy as np
import pytest

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.core.splits import Split
from graphhalu.evaluation.crossfit import check_questions, cross_fit_folds, visible_labels
from graphhalu.labels.labels import question_groups


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
    (split,) = cross_fit_folds(labels, groups, is_valid, n_folds=None, seed=3)
    everything = np.concatenate([split.train, split.validation, split.test])
    assert sorted(everything.tolist()) == np.flatnonzero(is_valid).tolist()


def test_one_class_among_the_valid_labels_is_refused(case):
    labels, groups, _ = case
    with pytest.raises(NotEnoughDataError, match="0 hallucinated"):
        cross_fit_folds(labels, groups, labels == 0)


def test_no_valid_label_is_refused(case):
    labels, groups, _ = case
    with pytest.raises(NotEnoughDataError, match="among 0 valid labels"):
        cross_fit_folds(labels, groups, np.zeros(211, dtype=bool), n_folds=None)


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


def test_groups_are_merged_as_near_duplicates_are_when_a_data_set_is_read(toys):
    texts = ["Who wrote Faust?", "who wrote 'Faust'", "Who wrote the Fáust?!", "Who wrote Egmont?"]
    traces = [toys.trace(i, question=text) for i, text in enumerate(texts)]
    assert question_groups(traces).tolist() == ["q0", "q0", "q0", "q3"]


def fold(train, validation, test):
    return Split(np.array(train), np.array(validation), np.array(test))


def test_a_shared_group_is_refused_with_both_traces_and_their_questions(toys):
    traces = [
        toys.trace(0, group="a", question="Who wrote Faust?"),
        toys.trace(1, group="b", question="Who was Goethe?"),
        toys.trace(2, group="a", question="Name the author of Faust."),
    ]
    with pytest.raises(UsageError) as caught:
        check_questions([fold([0], [1], [2])], traces)
    said = str(caught.value)
    assert "these two belong to one group" in said
    assert "'q0#0' (group 'a'): 'Who wrote Faust?' is in the train side of fold 0" in said
    assert "'q2#0' (group 'a'): 'Name the author of Faust.' is in the test side of fold 0" in said


@pytest.mark.parametrize("sides", [([0], [1], [2]), ([0], [2], [1]), ([1], [0], [2])])
def test_a_near_duplicate_under_another_group_is_refused_on_any_two_sides(toys, sides):
    traces = [
        toys.trace(0, group="a", question="Who wrote Faust?"),
        toys.trace(1, group="b", question="Who was Goethe?"),
        toys.trace(2, group="c", question="who wrote  'Fàust'"),
    ]
    pair = r"ask the same question.*\n.*'q0#0'.*Who wrote Faust.*\n.*'q2#0'.*who wrote  'Fàust'"
    with pytest.raises(UsageError, match=pair):
        check_questions([fold(*sides)], traces)


def test_two_traces_that_a_third_links_are_refused_though_it_is_on_no_side(toys):
    traces = [
        toys.trace(0, group="a", question="Who wrote Faust?"),
        toys.trace(1, group="b", question="who wrote faust"),
        toys.trace(2, group="b", question="Name the author of Faust."),
        toys.trace(3, group="c"),
    ]
    with pytest.raises(UsageError, match=r"linked through other traces:\n.*'q0#0'.*\n.*'q2#0'"):
        check_questions([fold([0], [3], [2])], traces)


def test_a_near_duplicate_in_two_test_sides_is_refused(toys):
    traces = [toys.trace(i, question=f"Who is it{mark}") for i, mark in enumerate(["?", "!"])]
    traces += [toys.trace(i) for i in (2, 3)]
    folds = [fold([2], [3], [0]), fold([2], [3], [1])]
    with pytest.raises(UsageError, match=r"test side of fold 0\n.*test side of fold 1"):
        check_questions(folds, traces)


def test_clean_folds_pass_the_check(toys):
    traces, labels = toys.planted()
    groups = question_groups(traces)
    folds = cross_fit_folds(labels.values, groups, labels.is_valid)
    check_questions(folds, traces)


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
