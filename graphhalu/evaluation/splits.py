"""The protocol of a comparison: every trace is scored by a model that never saw its question."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int, Shaped

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.core.splits import Split, check_groups, grouped_folds, grouped_split
from graphhalu.datasets.question import question_key
from graphhalu.labels.groups import question_groups
from graphhalu.labels.labels import Labels
from graphhalu.traces.schema import TraceRecord
from graphhalu.traces.trace import Trace


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
    return check_folds([_into(kept, fold, groups) for fold in folds], groups)


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
    return check_folds([_into(kept, split, groups)], groups)


def check_questions(folds: Sequence[Split], traces: Sequence[Trace]) -> list[Split]:
    """Return the folds unchanged, or refuse them when a question stands on two sides.

    It looks at the traces themselves, so that folds made in any way can be checked: two sides of
    a fold, and the test sides of two folds, may share no group and no question text. Near
    duplicates count as the same text, under whatever group ids they stand.

    Raises:
        UsageError: Names the two traces with their questions and groups.
    """
    keys: dict[str, list[str]] = {
        "belong to one group": [trace.record.group_id for trace in traces],
        "ask the same question": [
            question_key(trace.record.question, trace.record.context) for trace in traces
        ],
        "are linked through other traces": question_groups(traces).tolist(),
    }
    tests = {f"the test side of fold {number}": fold.test for number, fold in enumerate(folds)}
    for reason, names in keys.items():
        for number, fold in enumerate(folds):
            sides = {"train": fold.train, "validation": fold.validation, "test": fold.test}
            named = {f"the {side} side of fold {number}": part for side, part in sides.items()}
            _refuse_shared(named, names, traces, reason)
        _refuse_shared(tests, names, traces, reason)
    return list(folds)


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


def _refuse_shared(
    sides: Mapping[str, Int[np.ndarray, "member"]], names: Sequence[str], traces: Sequence[Trace], reason: str
) -> None:
    """Refuse sides that hold traces of one name, and describe the first such pair."""
    owner: dict[str, tuple[str, int]] = {}
    for side, indices in sides.items():
        for index in indices.tolist():
            first = owner.setdefault(names[index], (side, index))
            if first[0] != side:
                message = (
                    f"a question leaks between two sides of a split; these two {reason}:\n"
                    f"  {_described(traces[first[1]].record)} is in {first[0]}\n"
                    f"  {_described(traces[index].record)} is in {side}\n"
                    f"  Split by question:  single_split or cross_fit_folds with question_groups"
                )
                raise UsageError(message)


def _described(record: TraceRecord) -> str:
    return f"trace {record.trace_id!r} (group {record.group_id!r}): {record.question!r}"


def visible_labels(labels: Labels, split: Split) -> Labels:
    """The labels that a detector may see: those of training and validation.

    The others become invalid, with values and reason taken away, so that a detector cannot
    look at the test side, not even by mistake.
    """
    is_hidden = np.ones(len(labels.values), dtype=bool)
    is_hidden[np.concatenate([split.train, split.validation])] = False
    return labels.without(is_hidden, "held out")


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


def _into(kept: Int[np.ndarray, "kept"], split: Split, groups: Shaped[np.ndarray, "trace"]) -> Split:
    return Split(kept[split.train], kept[split.validation], kept[split.test], groups)
