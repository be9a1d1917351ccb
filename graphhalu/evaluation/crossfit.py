"""Cross-fitting: every trace is scored by a model that was fitted without its question.

The folds are grouped by question and checked against the traces themselves. A split of another
kind (whole categories held out, say) is a list of :class:`Split` that passes :func:`check_questions`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float, Int

from graphhalu.core.config import config_hash
from graphhalu.core.errors import GraphhaluError, NotEnoughDataError, UsageError
from graphhalu.core.files import shown
from graphhalu.core.numerics import json_ready
from graphhalu.core.provenance import installed_version
from graphhalu.core.splits import Split, grouped_folds, grouped_split
from graphhalu.datasets.question import question_key
from graphhalu.detectors.base import ChosenTraces, Detector, checked_scores
from graphhalu.detectors.category import LEAST_CATEGORIES, Categories, question_categories
from graphhalu.evaluation.bootstrap import EvaluationSet
from graphhalu.evaluation.calibration import (
    Calibration,
    MarkedAnswer,
    best_character_threshold,
    marked_answer,
)
from graphhalu.evaluation.metrics import Floats, Groups, Ints, Mask, check_classes
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.labels.labels import Labels, as_labels, question_groups
from graphhalu.traces.schema import TraceRecord
from graphhalu.traces.store import as_traces
from graphhalu.traces.trace import Trace

HeldOut = Literal["question", "category"]
"""What no two sides of a fold share: a question, or a whole category of them."""
_SIDES: Final = ("train", "validation", "test")
_LEAK: Final = "\n  trace {0.trace_id!r} (group {0.group_id!r}): {0.question!r} is in {1}"
Traces = Sequence[Trace]
Make = Callable[[], Detector]
OnFold = Callable[[int], None]
OfTest = Float[np.ndarray, "test"]
OfValidation = Float[np.ndarray, "validation"]
SplitKey = tuple[HeldOut, int]
"""What is held out, and the seed of the folds."""


@dataclass(frozen=True)
class ComparisonData:
    """The data that all detectors of a comparison share; groups are by trace.

    Of ``splits`` those by question come first; none hold categories out where there are too few.
    """

    traces: Sequence[Trace]
    labels: Labels
    groups: Groups
    splits: Mapping[SplitKey, list[Split]]
    config: CompareConfig
    categories: Categories | None = None

    @cached_property
    def is_kept(self) -> Mask:
        """Items of traces with a valid label."""
        return self.labels.is_valid[self.labels.owner]

    @cached_property
    def kept_items(self) -> EvaluationSet:
        """The items of traces with a valid label, on which all detectors are evaluated."""
        labels, groups = self.labels.items[self.is_kept], self.groups[self.labels.owner][self.is_kept]
        how = (self.config.n_resamples, self.config.bootstrap_seed, self.config.level)
        return EvaluationSet(labels, groups, *how)

    @cached_property
    def marked(self) -> list[MarkedAnswer]:
        """Characters of the answers, for detectors of tokens."""
        return [marked_answer(trace.record) for trace in self.traces]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the figures of a detector beside its own code and settings."""
        return {
            "graphhalu": installed_version("graphhalu"),
            "config": {**self.config.deciding(), "seeds": list(self.config.seeds)},
            "traces": config_hash({"ids": self.labels.trace_ids}),
            "labels": config_hash({"labels": [self.labels.items.tolist(), self.labels.is_valid.tolist()]}),
            "groups": config_hash({"groups": self.groups.tolist()}),
        }

    def key(self, name: str, settings: Mapping[str, Any]) -> str:
        """Identity of one finished detector."""
        return config_hash({**self.identity, "detector": name, "settings": json_ready(settings)})


def comparison_data(traces: Traces | Path | str, labels: Labels, config: CompareConfig) -> ComparisonData:
    """Groups, beams and checked folds of a comparison.

    Raises:
        UsageError: If these are not traces or no labels, labels belong to other traces, or a
            question would be on two sides.
        NotEnoughDataError: If there are too few questions, or one class only.
    """
    traces, labels = as_traces(traces), as_labels(labels)
    check_same_traces(traces, labels)
    if config.beams == "best":
        labels = labels.without(~best_beams(traces), "another beam of the question")
    groups = question_groups(traces)
    undivided: dict[SplitKey, Groups] = {("question", seed): groups for seed in config.seeds}
    n_folds, categories = None if config.quick else config.n_folds, None
    if labels.level == "answer":
        categories = question_categories([trace.record for trace in traces], groups, config.categories)
    if categories is not None and not config.quick and categories.n_among(labels) >= LEAST_CATEGORIES:
        seeds = config.seeds[: config.category_seeds]
        undivided |= {("category", seed): categories.names for seed in seeds}
    folds_of = partial(cross_fit_folds, labels.values, is_valid=labels.is_valid, n_folds=n_folds)
    splits = {key: folds_of(names, seed=key[1]) for key, names in undivided.items()}
    for folds in splits.values():
        check_questions(folds, traces)
    return ComparisonData(traces, labels, groups, splits, config, categories)


def check_same_traces(traces: Sequence[Trace], labels: Labels) -> None:
    """Refuse labels of other traces, or in another order.

    Raises:
        UsageError: Names the first trace that differs.
    """
    ids = tuple(trace.trace_id for trace in traces)
    if ids != labels.trace_ids:
        pairs = [pair for pair in zip(ids, labels.trace_ids, strict=False) if pair[0] != pair[1]]
        where = "trace {!r} meets the label of {!r}".format(*pairs[0]) if pairs else "one is longer"
        raise UsageError(
            f"{len(ids)} traces and {len(labels.trace_ids)} labels do not belong together: {where}\n"
            f"  Label these traces again:  graphhalu label"
        )


def best_beams(traces: Sequence[Trace]) -> Mask:
    """Which traces are the best beam of their question; given answers all count.

    Samples are never among them. The best beam is decided before labels are looked at: a question
    whose best beam has no valid label is left out, not replaced by another beam.
    """
    records = [trace.record for trace in traces]
    # of the beams of a question the last one in this order remains
    beams = [r for r in records if r.is_on_policy and not r.is_sample]
    ordered = sorted(beams, key=lambda record: -record.beam_index)
    best = {record.question_id: record.beam_index for record in ordered}
    is_best = [
        not r.is_on_policy or (not r.is_sample and r.beam_index == best[r.question_id]) for r in records
    ]
    return np.array(is_best, dtype=bool)


def cross_fit_folds(
    labels: Ints, groups: Groups, is_valid: Mask, *, n_folds: int | None = 5, seed: int = 0
) -> list[Split]:
    """Grouped, stratified folds over the valid traces; indices point into all traces.

    Fold ``k`` is tested, the next one validates, the rest trains. Without a number of folds it is
    one grouped split, 60 / 20 / 20: quick, but it tests a fifth only.

    Raises:
        NotEnoughDataError: If there are fewer groups than folds, or a class is missing.
    """
    kept = np.flatnonzero(is_valid)
    values, known = labels[kept], groups[kept]
    needed = f"a comparison needs both classes among {len(kept)} valid labels"
    check_classes(values, needed, way_out="\n  Extract more questions, or choose another labeller")
    if n_folds is None:
        folds = [grouped_split(values, known, seed=seed)]
    else:
        folds = grouped_folds(values, known, n_folds=n_folds, seed=seed)
    return [Split(kept[f.train], kept[f.validation], kept[f.test], groups) for f in folds]


def check_questions(folds: Sequence[Split], traces: Sequence[Trace]) -> None:
    """Refuse folds of which two sides share a question.

    It looks at the traces themselves, so that folds made in any way can be checked: two sides of
    a fold, and the test sides of two folds, may share no group and no question text. Near
    duplicates count as the same text, under whatever group ids they stand.

    Raises:
        UsageError: Names the two traces with their questions and groups.
    """
    records = [trace.record for trace in traces]
    keys: dict[str, list[str]] = {
        "belong to one group": [record.group_id for record in records],
        "ask the same question": [question_key(record.question, record.context) for record in records],
        "are linked through other traces": question_groups(traces).tolist(),
    }
    named = [{f"the {s} side of fold {n}": getattr(f, s) for s in _SIDES} for n, f in enumerate(folds)]
    sides = [*named, {f"the test side of fold {number}": fold.test for number, fold in enumerate(folds)}]
    for (reason, names), apart in product(keys.items(), sides):
        owner: dict[str, tuple[TraceRecord, str]] = {}
        for where, place in ((side, place) for side, places in apart.items() for place in places.tolist()):
            found = [owner.setdefault(names[place], (records[place], where)), (records[place], where)]
            if found[0][1] != where:
                listed = "".join(_LEAK.format(*each) for each in found)
                raise UsageError(
                    f"a question leaks between two sides of a split; these two {reason}:{listed}\n"
                    f"  Split by question:  cross_fit_folds with question_groups"
                )


def visible_labels(labels: Labels, split: Split) -> Labels:
    """The labels that a detector may see: those of training and validation.

    The others become invalid, with values and reason taken away, so that a detector cannot
    look at the test side, not even by mistake.
    """
    is_hidden = np.ones(len(labels.values), dtype=bool)
    is_hidden[np.concatenate([split.train, split.validation])] = False
    return labels.without(is_hidden, "held out")


@dataclass(frozen=True)
class FoldModel:
    """A detector fitted on one fold, with what its validation side says of its scores.

    Attributes:
        detector: The fitted detector.
        reference: Its scores of the validation side, by which scores are pooled.
        calibration: Fitted on the validation side; ``None`` where that lacks a class.
        fit_s: Seconds of the fit.
    """

    detector: Detector
    reference: OfValidation
    calibration: Calibration | None
    fit_s: float


class OutOfFold:
    """Scores of one detector and seed, each from a model that never saw the trace's question.

    It is filled fold by fold. The items are those of the labels: traces, or the answer tokens of all traces.

    Args:
        n_items: How many there are; none is tested yet.

    Attributes:
        values: Scores that can be pooled over folds; NaN where not valid.
        raw: Scores as the detector gave them; NaN where not valid.
        probability: Probability of being hallucinated, calibrated on the validation side of the
            fold; NaN where not valid, or where that side lacks a class.
        is_predicted_positive: Whether the score reaches the threshold chosen on the validation
            side; false where there is no probability.
        fold: The fold that tested the item; -1 where none did.
        fit_s: Seconds of each fit.
        score_s: Seconds that scoring the tested traces took, in total.
        n_parameters: Numbers that the last fit chose; ``None`` where they are not counted.
        choices: For each fit its fold, its threshold, and what the detector says of its training.
    """

    def __init__(self, n_items: int) -> None:
        self.values, self.raw, self.probability = (np.full(n_items, np.nan) for _ in range(3))
        self.is_predicted_positive, self.fold = np.zeros(n_items, dtype=bool), np.full(n_items, -1)
        self.fit_s, self.score_s = list[float](), 0.0
        self.n_parameters: int | None = None
        self.choices: list[dict[str, Any]] = []

    @property
    def is_valid(self) -> Mask:
        """Whether the item was tested and has a score."""
        return np.isfinite(self.raw)

    @property
    def is_tested(self) -> Mask:
        """Whether the item was tested."""
        return self.fold >= 0

    def add_fold(self, number: int, model: FoldModel, traces: Traces, labels: Labels, places: Ints) -> None:
        """Add the scores that the model of one fold gives some traces.

        Args:
            number: Number of the fold.
            model: Its model.
            traces: Traces, which need not be those that it was fitted among.
            labels: Labels of these traces.
            places: Those of the traces to score.

        Raises:
            GraphhaluError: What the detector raised.
        """
        items, started = labels.places(places), perf_counter()
        raw = _values(model.detector, traces, places)
        self.score_s += perf_counter() - started
        self.values[items], self.raw[items] = standardise(raw, model.reference), raw
        self.fold[items] = number
        threshold = None
        if model.calibration is not None:
            threshold = model.calibration.threshold
            self.probability[items] = model.calibration.probability(raw)
            self.is_predicted_positive[items] = model.calibration.is_predicted_positive(raw)
        self.fit_s.append(model.fit_s)
        self.n_parameters = model.detector.n_parameters
        report: Mapping[str, Any] = getattr(model.detector, "training_report", {})
        self.choices.append({"fold": number, "threshold": threshold, **report})


def cross_fit(
    make: Make, traces: Traces, labels: Labels, folds: Sequence[Split], *, on_fold: OnFold | None = None
) -> OutOfFold:
    """Fit on each fold, score the items of its test side, and pool the scores.

    Models of different folds may score on different scales, and AUROC over pooled scores
    compares them. So each fold's scores pass through :func:`standardise`, fitted on the
    validation side. That is increasing, so it changes no ranking within a fold; it sees no
    label and no test trace, so nothing leaks.

    Args:
        make: Gives a fresh detector for each fold.
        traces: All traces; indices of the folds point into them.
        labels: Labels of the same traces in the same order.
        folds: Checked folds; see :func:`check_questions`.
        on_fold: Called with the fold's number when it is done.

    Raises:
        Exception: What the detector raised, with the fold in a note.
    """
    done = OutOfFold(len(labels.items))
    for number, fold in enumerate(folds):
        try:
            model = fit_fold(make, traces, labels, fold)
            done.add_fold(number, model, traces, labels, fold.test)
        except Exception as error:
            error.add_note(f"in fold {number}")
            raise
        if on_fold is not None:
            on_fold(number)
    return done


def fit_fold(make: Make, traces: Traces, labels: Labels, fold: Split) -> FoldModel:
    """Fit a fresh detector on a fold, then calibrate it on the validation side.

    The threshold is that of the best F1 there: of answers, or at token level of the characters
    of marked spans (:func:`graphhalu.evaluation.calibration.best_character_threshold`).

    Raises:
        GraphhaluError: What the detector raised.
    """
    started = perf_counter()
    detector: object = make().fit(traces, visible_labels(labels, fold), fold)
    if not isinstance(detector, Detector):
        raise GraphhaluError(f"fit must return the detector, got {shown(detector)}")
    fit_s = perf_counter() - started
    reference = _values(detector, traces, fold.validation)
    items = labels.places(fold.validation)
    known = np.isfinite(reference) & labels.is_valid[labels.owner[items]]
    truth = labels.items[items][known]
    calibration = threshold = None
    if len(np.unique(truth)) == 2:  # noqa: PLR2004
        if labels.level == "token":
            marked = [marked_answer(traces[index].record) for index in fold.validation.tolist()]
            threshold = best_character_threshold(reference, marked)
        calibration = Calibration.fit(reference[known], truth, threshold=threshold)
    return FoldModel(detector, reference, calibration, fit_s)


def standardise(scores: OfTest, reference: OfValidation) -> OfTest:
    """Scores minus the mean of the reference, divided by its standard deviation.

    Both are winsorised: reference scores beyond the 5th and 95th percentile count as these
    percentiles, since one answer with a huge perplexity would otherwise squeeze all others of
    its fold together. Medians and quartiles would jump where scores come in two heaps, as those
    of a confident classifier do. Where the winsorised deviation is 0 the plain one is taken, and
    1 where that is 0 too. NaN stays NaN.

    Raises:
        NotEnoughDataError: If the reference holds no valid score while the test side does.
    """
    known = reference[np.isfinite(reference)]
    if not len(known):
        if not np.isfinite(scores).any():
            return scores
        raise NotEnoughDataError("no valid score on the validation side: scores of folds cannot be pooled")
    clipped = np.clip(known, *np.quantile(known, [0.05, 0.95]))
    # a spread below rounding would be blown up by the division
    spreads = [each.std() for each in (clipped, known) if each.std() > 1e-9 * np.abs(each).max()]
    # the mean of equal scores may differ from them by rounding, which would then rank folds
    return (scores - clipped.mean()) / spreads[0] if spreads else scores - np.median(known)


def _values(detector: Detector, traces: Sequence[Trace], indices: Int[np.ndarray, "side"]) -> Floats:
    """Scores as float64, NaN where invalid; refuses scores that do not fit the traces."""
    chosen = ChosenTraces(traces, tuple(indices.tolist()))
    return checked_scores(detector, detector.score(chosen), chosen).values
