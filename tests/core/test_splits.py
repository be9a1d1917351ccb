import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.splits import Split, check_groups, grouped_folds, grouped_split, inner_folds


@st.composite
def grouped_labels(draw):
    """7 to 61 groups of 1 to 5 traces with labels, in a shuffled order."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=7, max_size=61))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    groups = np.array(draw(st.permutations(groups.tolist())))
    n = len(groups)
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    return labels, np.array([f"q{group}" for group in groups])


def sides(split):
    return [split.train, split.validation, split.test]


@given(grouped_labels(), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_a_split_is_a_partition_without_shared_groups(case, seed):
    labels, groups = case
    split = grouped_split(labels, groups, seed=seed)
    assert sorted(np.concatenate(sides(split)).tolist()) == list(range(len(labels)))
    owners = [set(groups[side].tolist()) for side in sides(split)]
    assert sum(map(len, owners)) == len(set(groups.tolist()))
    assert all(len(side) for side in sides(split))


@given(grouped_labels(), st.integers(3, 7), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_folds_test_every_trace_once_and_share_no_group(case, n_folds, seed):
    labels, groups = case
    folds = grouped_folds(labels, groups, n_folds=n_folds, seed=seed)
    assert len(folds) == n_folds
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested.tolist()) == list(range(len(labels)))
    for fold in folds:
        assert sorted(np.concatenate(sides(fold)).tolist()) == list(range(len(labels)))
        owners = [set(groups[side].tolist()) for side in sides(fold)]
        assert sum(map(len, owners)) == len(set(groups.tolist()))
        assert all(len(side) for side in sides(fold))


@given(grouped_labels(), st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_the_same_seed_gives_the_same_split_and_folds(case, seed):
    first, second = (grouped_split(*case, seed=seed) for _ in range(2))
    for one, other in zip(sides(first), sides(second), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(*(grouped_folds(*case, seed=seed) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(one.test, other.test)


@given(st.integers(20, 200), st.floats(0.1, 0.9), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_prevalence_differs_by_one_trace_at_most_between_folds(n, share, seed):
    """With one trace a group the stratification is exact."""
    labels = (np.random.default_rng(seed).random(n) < share).astype(np.int64)
    folds = grouped_folds(labels, np.arange(n), n_folds=5, seed=seed)
    for label in (0, 1):
        counts = [int((labels[fold.test] == label).sum()) for fold in folds]
        assert max(counts) - min(counts) <= 1


@given(st.integers(50, 300), st.floats(0.2, 0.8), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_prevalence_and_size_of_the_sides_are_close_to_those_of_all(n, share, seed):
    labels = (np.random.default_rng(seed).random(n) < share).astype(np.int64)
    split = grouped_split(labels, np.arange(n), seed=seed)
    for side, fraction in zip(sides(split), (0.6, 0.2, 0.2), strict=True):
        assert abs(len(side) - fraction * n) <= 1
        assert abs(labels[side].sum() - fraction * labels.sum()) <= 2


def test_another_seed_gives_another_split():
    labels, groups = np.arange(97) % 2, np.arange(97)
    first, second = (grouped_split(labels, groups, seed=seed).test for seed in (0, 1))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("n_groups", range(3, 12))
def test_the_fewest_groups_leave_no_side_empty(n_groups):
    split = grouped_split(np.arange(n_groups) % 2, np.arange(n_groups))
    assert all(len(side) for side in sides(split))


def test_a_side_without_a_share_stays_empty():
    split = grouped_split(np.arange(10) % 2, np.arange(10), fractions=(0.5, 0.0, 0.5))
    assert [len(side) for side in sides(split)] == [5, 0, 5]


@pytest.mark.parametrize("fractions", [(0.9, 0.9, 0.9), (1.2, -0.1, -0.1), (0.3, 0.3, 0.3)])
def test_fractions_that_are_no_shares_are_refused(fractions):
    with pytest.raises(ValueError, match="shares that sum to 1"):
        grouped_split(np.arange(10) % 2, np.arange(10), fractions=fractions)


def test_too_few_groups_are_refused():
    with pytest.raises(NotEnoughDataError, match="at least 3 questions, got 2"):
        grouped_split(np.array([0, 1, 1]), np.array(["a", "b", "b"]))
    with pytest.raises(NotEnoughDataError, match="at least 5 questions, got 4"):
        grouped_folds(np.arange(4) % 2, np.arange(4))


def test_two_folds_would_leave_nothing_to_train_on():
    with pytest.raises(ValueError, match="at least 3 folds"):
        grouped_folds(np.arange(10) % 2, np.arange(10), n_folds=2)


def test_a_shared_group_is_refused_and_both_traces_are_named():
    groups = np.array(["a", "b", "c", "b"])
    leaky = Split(np.array([0, 1]), np.array([2]), np.array([3]))
    message = "group 'b': trace 1 is in train, trace 3 is in test; split by question"
    with pytest.raises(ValueError, match=message):
        check_groups(leaky, groups)


def test_a_clean_split_is_returned_unchanged():
    split = Split(np.array([0, 1]), np.array([2]), np.array([3]))
    assert check_groups(split, np.array(["a", "a", "b", "c"])) is split


@given(grouped_labels(), st.integers(2, 5), st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_inner_folds_hold_out_each_given_trace_once_and_part_no_group(case, n_folds, seed):
    labels, groups = case
    outer = grouped_split(labels, groups, seed=seed)
    n_groups = len(np.unique(groups[outer.train]))
    if n_groups < n_folds:
        return
    folds = inner_folds(labels, groups, outer.train, n_folds=n_folds, seed=seed)
    held_out = np.concatenate([fold.held_out for fold in folds])
    assert sorted(held_out.tolist()) == sorted(outer.train.tolist())
    for fold in folds:
        assert sorted([*fold.train, *fold.held_out]) == sorted(outer.train.tolist())
        assert not set(groups[fold.train]) & set(groups[fold.held_out])


def test_inner_folds_are_stratified_where_one_class_is_rare():
    labels = (np.arange(200) % 10 == 0).astype(np.int64)
    folds = inner_folds(labels, np.arange(200), np.arange(50, 170), seed=3)
    assert [int(labels[fold.held_out].sum()) for fold in folds] == [4, 4, 4]


def test_too_few_inner_folds_or_groups_are_refused():
    with pytest.raises(ValueError, match="at least 2 folds, got 1"):
        inner_folds(np.arange(9) % 2, np.arange(9), np.arange(5), n_folds=1)
    with pytest.raises(NotEnoughDataError, match="3 folds need at least 3 questions, got 2"):
        inner_folds(np.arange(9) % 2, np.arange(9), np.array([1, 2]))
