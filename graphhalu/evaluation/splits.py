"""The protocol of a comparison: every trace is scored by a model that never saw its question."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int, Shaped
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from graphhalu.axes import LABEL_CORRECT
from graphhalu.errors import NotEnoughDataError, UsageError
from graphhalu.labels.labels import Labels
from graphhalu.splits import Split, check_groups, grouped_folds, grouped_split
from graphhalu.traces.trace import Trace


def question_groups(traces: Sequence[Trace]) -> Shaped[np.ndarray, "trace"]:
    """Group of each trace: its ``group_id``, merged where groups ask the same question.

    Data sets hold some questions twice under two ids. Two groups with the same question text
    (case and spaces aside) on the same context become one, under the name of the first.
    """
    records = [trace.record for trace in traces]
    names = [record.group_id for record in records]
    ids = _codes(names)
    texts = _codes([(" ".join(r.question.casefold().split()), r.context) for r in records])
    n_ids, n_nodes = int(ids.max()) + 1, int(ids.max()) + int(texts.max()) + 2
    links = (np.ones(len(ids)), (ids, n_ids + texts))
    merged = connected_components(coo_array(links, shape=(n_nodes, n_nodes)), directed=False)[1]
    first: dict[int, str] = {}
    for component, name in zip(merged[ids].tolist(), names, strict=True):
        first.setdefault(component, name)
    return np.array([first[component] for component in merged[ids].tolist()])


def cross_fit_folds(
    labels: Int[np.ndarray, "trace"],
    groups: Shaped[np.ndarray, "trace"],
    is_valid: Bool[np.ndarray, "trace"],
    *,
    n_folds: int = 5,
    seed: int = 0,
) -> list[Split]:
    """Grouped, stratified folds over the valid traces; indices point into all traces.

    Fold ``k`` is tested, the next one validates, the rest trains.

    Raises:
        NotEnoughDataError: If there are fewer groups than folds, or a class is missing.
    """
    kept = _valid_indices(labels, is_valid)
    folds = grouped_folds(labels[kept], groups[kept], n_folds=n_folds, seed=seed)
    return check_folds([_into(kept, fold) for fold in folds], groups)


def single_split(
    labels: Int[np.ndarray, "trace"],
    groups: Shaped[np.ndarray, "trace"],
    is_valid: Bool[np.ndarray, "trace"],
    *,
    seed: int = 0,
) -> list[Split]:
    """One grouped split, 60 / 20 / 20, as a list of one fold: quick, but tests a fifth only.

    Raises:
        NotEnoughDataError: If there are fewer than three groups, or a class is missing.
    """
    kept = _valid_indices(labels, is_valid)
    split = grouped_split(labels[kept], groups[kept], seed=seed)
    return check_folds([_into(kept, split)], groups)


def check_folds(folds: Sequence[Split], groups: Shaped[np.ndarray, "trace"]) -> list[Split]:
    """Return the folds unchanged, or refuse them when a question leaks.

    Raises:
        UsageError: If two sides of a fold, or the test sides of two folds, share a group;
            names the pair of traces.
    """
    owner: dict[object, tuple[int, int]] = {}
    names = groups.tolist()
    for number, fold in enumerate(folds):
        try:
            check_groups(fold, groups)
        except ValueError as error:
            message = f"fold {number}: {error}"
            raise UsageError(message) from None
        for index in fold.test.tolist():
            first = owner.setdefault(names[index], (number, index))
            if first[0] != number:
                message = (
                    f"two folds test group {names[index]!r}: trace {first[1]} in fold "
                    f"{first[0]}, trace {index} in fold {number}; make folds by question"
                )
                raise UsageError(message)
    return list(folds)


def visible_labels(labels: Labels, split: Split) -> Labels:
    """The labels that a detector may see: those of training and validation.

    The others become invalid, with value and reason taken away, so that a detector cannot
    look at the test side, not even by mistake.
    """
    seen = np.zeros(len(labels.values), dtype=bool)
    seen[np.concatenate([split.train, split.validation])] = True
    return replace(
        labels,
        values=np.where(seen, labels.values, LABEL_CORRECT),
        is_valid=labels.is_valid & seen,
        reasons=tuple(
            reason if is_seen else "held out"
            for reason, is_seen in zip(labels.reasons, seen.tolist(), strict=True)
        ),
    )


def _codes(keys: Sequence[Hashable]) -> Int[np.ndarray, "trace"]:
    """Number equal keys alike, in the order of their first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _valid_indices(
    labels: Int[np.ndarray, "trace"], is_valid: Bool[np.ndarray, "trace"]
) -> Int[np.ndarray, "kept"]:
    kept = np.flatnonzero(is_valid)
    n_hallucinated = int(labels[kept].sum())
    if n_hallucinated in (0, len(kept)):
        message = (
            f"a comparison needs both classes, got {n_hallucinated} hallucinated and "
            f"{len(kept) - n_hallucinated} correct among {len(kept)} valid labels\n"
            f"  Extract more questions, or choose another labeller"
        )
        raise NotEnoughDataError(message)
    return kept


def _into(kept: Int[np.ndarray, "kept"], split: Split) -> Split:
    return Split(kept[split.train], kept[split.validation], kept[split.test])
