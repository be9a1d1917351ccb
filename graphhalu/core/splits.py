"""Splits by group: everything that belongs to one question stays on one side.

Evaluation builds its nested protocol on these functions, and graphs use them too.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from graphhalu.core.errors import NotEnoughDataError

Ints = Int[np.ndarray, "trace"]


@dataclass(frozen=True)
class Split:
    """Trace indices of one division into training, validation and test.

    Attributes:
        groups: Question group of every trace that the indices point into, where whoever made
            the split knows it: for :func:`inner_folds` and for resampling by question.
    """

    train: Int[np.ndarray, "train"]
    validation: Int[np.ndarray, "validation"]
    test: Int[np.ndarray, "test"]
    groups: Shaped[np.ndarray, "trace"] | None = None


class InnerFold(NamedTuple):
    """One fold within a side of a split; indices point into all traces, as those of the split."""

    train: Int[np.ndarray, "train"]
    held_out: Int[np.ndarray, "held_out"]


def check_groups(split: Split, groups: Shaped[np.ndarray, "trace"]) -> Split:
    """Return the split unchanged, or refuse it when two sides share a group.

    Raises:
        ValueError: Names the offending pair of traces and their group.
    """
    sides = {"train": split.train, "validation": split.validation, "test": split.test}
    owner: dict[object, tuple[str, int]] = {}
    names = groups.tolist()  # plain values read better in the message
    for side, indices in sides.items():
        for index in indices.tolist():
            group = names[index]
            first = owner.setdefault(group, (side, index))
            if first[0] != side:
                raise ValueError(
                    f"the split shares group {group!r}: trace {first[1]} is in {first[0]}, "
                    f"trace {index} is in {side}; split by question"
                )
    return split


def grouped_split(
    labels: Ints,
    groups: Shaped[np.ndarray, "trace"],
    *,
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
) -> Split:
    """Divide traces by group into training, validation and test, stratified by label.

    Groups are shuffled, sorted by their share of hallucinated traces (in a stable sort) and
    dealt to the sides in proportion, so that prevalence is nearly the same everywhere.

    Args:
        labels: 0 or 1 for each trace.
        groups: Group of each trace; traces of one group never part.
        fractions: Shares of training, validation and test; they sum to 1.
        seed: Seed of the shuffle.

    Raises:
        ValueError: If the fractions are not shares that sum to 1.
        NotEnoughDataError: If there are fewer than three groups.
    """
    if min(fractions) < 0 or not np.isclose(sum(fractions), 1):
        raise ValueError(f"fractions must be shares that sum to 1, got {fractions}")
    n_groups = len(np.unique(groups))
    if n_groups < 3:  # noqa: PLR2004
        raise NotEnoughDataError(f"a split into three sides needs at least 3 questions, got {n_groups}")
    side = _dealt_by_label(labels, groups, _sides(n_groups, fractions), seed)
    return Split(*(np.flatnonzero(side == index) for index in range(3)))


def grouped_folds(
    labels: Ints, groups: Shaped[np.ndarray, "trace"], *, n_folds: int = 5, seed: int = 0
) -> list[Split]:
    """Folds for cross-fitting: every trace is tested once, by a model that never saw its group.

    Fold ``k`` is tested, fold ``k + 1`` (cyclic) validates, the rest trains.

    Raises:
        ValueError: If there are fewer than three folds: nothing would be left to train on.
        NotEnoughDataError: If there are fewer groups than folds.
    """
    if n_folds < 3:  # noqa: PLR2004
        raise ValueError(f"cross-fitting needs at least 3 folds (train, validate, test), got {n_folds}")
    fold = _fold_numbers(labels, groups, n_folds, seed)
    return [
        Split(
            train=np.flatnonzero((fold != k) & (fold != (k + 1) % n_folds)),
            validation=np.flatnonzero(fold == (k + 1) % n_folds),
            test=np.flatnonzero(fold == k),
        )
        for k in range(n_folds)
    ]


def inner_folds(
    labels: Ints,
    groups: Shaped[np.ndarray, "trace"],
    indices: Int[np.ndarray, "member"],
    *,
    n_folds: int = 3,
    seed: int = 0,
) -> list[InnerFold]:
    """Grouped, stratified folds within one side: for a detector that chooses by cross-validation.

    Every given trace is held out once, by a model that never saw its question. Give the indices
    of the training side, or of training and validation together; the test side has no business
    here.

    Args:
        labels: 0 or 1 for each of all traces.
        groups: Group of each of all traces, as in :attr:`Split.groups`.
        indices: The traces to divide; leave out those without a valid label.
        n_folds: How many folds, 2 or more.
        seed: Seed of the shuffle.

    Raises:
        ValueError: If there are fewer than two folds.
        NotEnoughDataError: If there are fewer groups than folds.
    """
    if n_folds < 2:  # noqa: PLR2004
        raise ValueError(f"inner cross-validation needs at least 2 folds, got {n_folds}")
    fold = _fold_numbers(labels[indices], groups[indices], n_folds, seed)
    return [InnerFold(indices[fold != k], indices[fold == k]) for k in range(n_folds)]


def _fold_numbers(labels: Ints, groups: Shaped[np.ndarray, "trace"], n_folds: int, seed: int) -> Ints:
    """Fold of each trace; groups are dealt out in turn."""
    n_groups = len(np.unique(groups))
    if n_groups < n_folds:
        raise NotEnoughDataError(f"{n_folds} folds need at least {n_folds} questions, got {n_groups}")
    return _dealt_by_label(labels, groups, np.arange(n_groups) % n_folds, seed)


def _dealt_by_label(
    labels: Ints, groups: Shaped[np.ndarray, "trace"], sides: Int[np.ndarray, "group"], seed: int
) -> Ints:
    """Side of each trace: shuffled groups, sorted by their share of ones, take the sides in order."""
    _, group_index = np.unique(groups, return_inverse=True)
    positives = np.bincount(group_index, weights=labels) / np.bincount(group_index)
    shuffled = np.random.default_rng(seed).permutation(len(sides))
    order = shuffled[np.argsort(positives[shuffled], kind="stable")]
    side_of_group = np.empty(len(sides), dtype=np.int64)
    side_of_group[order] = sides
    return side_of_group[group_index]


def _sides(n_groups: int, fractions: tuple[float, float, float]) -> Int[np.ndarray, "group"]:
    """Side of each place in the order: the side furthest behind its share takes the next.

    A side that comes out empty although it has a share takes a place from the largest one.
    """
    dealt = np.zeros(3)
    sides = np.empty(n_groups, dtype=np.int64)
    shares = np.asarray(fractions)
    for place in range(n_groups):
        side = int(np.argmax(shares * (place + 1) - dealt))
        sides[place] = side
        dealt[side] += 1
    for empty in np.flatnonzero((shares > 0) & (dealt == 0)):
        largest = int(np.argmax(dealt))
        sides[np.flatnonzero(sides == largest)[-1]] = empty
        dealt[largest] -= 1
        dealt[empty] += 1
    return sides
