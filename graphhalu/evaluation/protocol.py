"""Protocol of a comparison: every trace is scored by a model that never saw its question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from graphhalu.core.config import config_hash
from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.core.numerics import json_ready
from graphhalu.core.provenance import installed_version
from graphhalu.core.splits import Split, grouped_folds, grouped_split
from graphhalu.datasets.question import question_key
from graphhalu.evaluation.bootstrap import EvaluationSet
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.evaluation.token_metrics import MarkedAnswer, marked_answer
from graphhalu.labels.labels import Labels, as_labels, question_groups
from graphhalu.traces.schema import TraceRecord
from graphhalu.traces.store import as_traces
from graphhalu.traces.trace import Trace


@dataclass(frozen=True)
class ComparisonData:
    """The data that all detectors of a comparison share; folds are by seed, groups by trace."""

    traces: Sequence[Trace]
    labels: Labels
    groups: Shaped[np.ndarray, "trace"]
    folds: Mapping[int, list[Split]]
    config: CompareConfig

    @cached_property
    def is_kept(self) -> Bool[np.ndarray, "item"]:
        """Items of traces with a valid label."""
        return self.labels.is_valid[self.labels.owner]

    @cached_property
    def kept_items(self) -> EvaluationSet:
        """The items of traces with a valid label, on which all detectors are evaluated."""
        groups = self.groups[self.labels.owner]
        return self._resampled(self.labels.items[self.is_kept], groups[self.is_kept])

    @cached_property
    def answers(self) -> EvaluationSet:
        """All traces, for metrics of token detectors by answer."""
        return self._resampled(self.labels.values, self.groups)

    def _resampled(
        self, labels: Int[np.ndarray, "item"], groups: Shaped[np.ndarray, "item"]
    ) -> EvaluationSet:
        config = self.config
        return EvaluationSet(labels, groups, config.n_resamples, config.bootstrap_seed, config.level)

    @cached_property
    def marked(self) -> list[MarkedAnswer]:
        """Characters of the answers, for detectors of tokens."""
        return [marked_answer(trace.record) for trace in self.traces]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the figures of a detector beside its own code and settings."""
        labels = [self.labels.items.tolist(), self.labels.is_valid.tolist()]
        return {
            "graphhalu": installed_version("graphhalu"),
            "config": {**self.config.deciding(), "seeds": list(self.config.seeds)},
            "traces": config_hash({"ids": self.labels.trace_ids}),
            "labels": config_hash({"labels": labels}),
            "groups": config_hash({"groups": self.groups.tolist()}),
        }

    def key(self, name: str, settings: Mapping[str, Any]) -> str:
        """Identity of one finished detector."""
        return config_hash({**self.identity, "detector": name, "settings": json_ready(settings)})


def comparison_data(
    traces: Sequence[Trace] | Path | str, labels: Labels, config: CompareConfig
) -> ComparisonData:
    """Groups, beams and checked folds of a comparison.

    Raises:
        UsageError: If these are no traces or no labels, labels belong to other traces, or a
            question would be on two sides.
        NotEnoughDataError: If there are too few questions, or one class only.
    """
    traces, labels = as_traces(traces), as_labels(labels)
    check_same_traces(traces, labels)
    if config.beams == "best":
        labels = labels.without(~best_beams(traces), "another beam of the question")
    groups = question_groups(traces)
    n_folds = None if config.quick else config.n_folds
    folds = {
        seed: cross_fit_folds(labels.values, groups, labels.is_valid, n_folds=n_folds, seed=seed)
        for seed in config.seeds
    }
    for made in folds.values():
        check_questions(made, traces)
    return ComparisonData(traces, labels, groups, folds, config)


def check_same_traces(traces: Sequence[Trace], labels: Labels) -> None:
    """Refuse labels of other traces, or in another order.

    Raises:
        UsageError: Names the first trace that differs.
    """
    ids = [trace.trace_id for trace in traces]
    if tuple(ids) != labels.trace_ids:
        pairs = zip(ids, labels.trace_ids, strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), None)
        where = f"trace {first[0]!r} meets the label of {first[1]!r}" if first else "one is longer"
        message = (
            f"{len(ids)} traces and {len(labels.trace_ids)} labels do not belong together: "
            f"{where}\n  Label these traces again:  graphhalu label"
        )
        raise UsageError(message)


def best_beams(traces: Sequence[Trace]) -> Bool[np.ndarray, "trace"]:
    """Which traces are the best beam of their question; given answers all count.

    The best beam is decided before labels are looked at: a question whose best beam has no
    valid label is left out, not replaced by another beam.
    """
    records = [trace.record for trace in traces]
    best: dict[str, int] = {}
    for record in records:
        if record.is_on_policy:
            first = best.setdefault(record.question_id, record.beam_index)
            best[record.question_id] = min(first, record.beam_index)
    is_best = [not r.is_on_policy or r.beam_index == best[r.question_id] for r in records]
    return np.array(is_best, dtype=bool)


def cross_fit_folds(
    labels: Int[np.ndarray, "trace"],
    groups: Shaped[np.ndarray, "trace"],
    is_valid: Bool[np.ndarray, "trace"],
    *,
    n_folds: int | None = 5,
    seed: int = 0,
) -> list[Split]:
    """Grouped, stratified folds over the valid traces; indices point into all traces.

    Fold ``k`` is tested, the next one validates, the rest trains. Without a number of folds it is
    one grouped split, 60 / 20 / 20: quick, but it tests a fifth only.

    Raises:
        NotEnoughDataError: If there are fewer groups than folds, or a class is missing.
    """
    kept = np.flatnonzero(is_valid)
    n_hallucinated = int(labels[kept].sum())
    if n_hallucinated in (0, len(kept)):
        message = (
            f"a comparison needs both classes, got {n_hallucinated} hallucinated and "
            f"{len(kept) - n_hallucinated} correct among {len(kept)} valid labels\n"
            f"  Extract more questions, or choose another labeller"
        )
        raise NotEnoughDataError(message)
    if n_folds is None:
        folds = [grouped_split(labels[kept], groups[kept], seed=seed)]
    else:
        folds = grouped_folds(labels[kept], groups[kept], n_folds=n_folds, seed=seed)
    return [Split(kept[f.train], kept[f.validation], kept[f.test], groups) for f in folds]


def check_questions(folds: Sequence[Split], traces: Sequence[Trace]) -> None:
    """Refuse folds of which two sides share a question.

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
                    f"  Split by question:  cross_fit_folds with question_groups"
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
