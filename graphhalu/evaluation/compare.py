"""Compare detectors on the same traces, labels, folds and resamples."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from graphhalu.core.errors import UsageError
from graphhalu.core.provenance import provenance
from graphhalu.core.splits import Split
from graphhalu.detectors.base import DetectorCard
from graphhalu.evaluation.checkpoints import Finished, clear_checkpoints, finished_detectors, save_checkpoint
from graphhalu.evaluation.crossfit import OutOfFold
from graphhalu.evaluation.detector_specs import DetectorFactory, DetectorSpec, GivenDetectors, detector_specs
from graphhalu.evaluation.judgement import baseline_tests, seed_scores, subgroups
from graphhalu.evaluation.result import SAMPLE_SCHEMA, Result
from graphhalu.evaluation.rows import Compared, detector_row, failed_row, sample_table
from graphhalu.evaluation.running import FoldHook, RunOptions, SeedRun, failure_text, run_specs
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.evaluation.splits import check_questions, cross_fit_folds, single_split
from graphhalu.evaluation.token_counts import token_counts, token_notes
from graphhalu.labels.groups import question_groups
from graphhalu.labels.labels import Labels, as_labels
from graphhalu.traces.store import as_traces
from graphhalu.traces.trace import Trace

__all__ = [
    "CompareConfig",
    "DetectorFactory",
    "Progress",
    "RunOptions",
    "best_beams",
    "compare",
    "make_compared",
]


@dataclass(frozen=True)
class Progress:
    """One fold is done; ``n_done`` of ``n_total`` fits over all detectors and seeds."""

    detector: str
    seed: int
    fold: int
    n_done: int
    n_total: int


def compare(
    traces: Sequence[Trace] | Path | str,
    labels: Labels,
    detectors: GivenDetectors | None = None,
    *,
    config: CompareConfig | None = None,
    store: Mapping[str, Any] | None = None,
    options: RunOptions | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Result:
    """Cross-fit every detector on the same grouped folds and evaluate the pooled scores.

    Traces without a valid label are left out first, and beams that are not the best of their
    question unless the configuration says otherwise. A detector sees labels of its training
    and validation side only. One that fails is recorded with its reason; the others go on.
    Traces without a valid score are left out of the metrics; the coverage says how many.

    With labels of tokens (:func:`graphhalu.labels.spans.label_tokens`) detectors of tokens are
    compared, and the position control is what they are tested against.

    Args:
        traces: Traces in the order of the labels, or where their store lies; other beams of a
            question stay among them.
        labels: Of the traces, or of their tokens.
        detectors: A list of registered names, ``module:Class``, classes and detectors that are
            not fitted, or names with a class, function or detector each; by default those of the
            configuration. A detector is copied afresh for each fold and keeps its own seed.
        config: Folds, seeds and resamples.
        store: Identity of the traces, for the record.
        options: Processes, and the folder of a comparison that can be resumed.
        on_progress: Called after each fold.

    Raises:
        UsageError: If no detector is given or one is of another level than the labels, labels
            belong to other traces, or a resumed folder holds another comparison.
        UnknownNameError: If no detector has such a name.
        NotEnoughDataError: If there are too few questions, or one class only.
    """
    config, options = config or CompareConfig(), options or RunOptions()
    specs = detector_specs(detectors, config, as_labels(labels).level)
    compared = make_compared(traces, labels, config)
    done: dict[str, Finished] = {}
    if options.folder is not None and options.is_resumed:
        done = finished_detectors(options.folder, compared)
    elif options.folder is not None:
        clear_checkpoints(options.folder)
    keys = {name: each.row.key for name, each in done.items()}
    todo = [e for e in specs if keys.get(e.name) != compared.key(e.name, e.settings)]
    names, is_in_order = [spec.name for spec in todo], options.spread() is None
    report = fold_reporter(on_progress, names, compared.folds, is_in_order=is_in_order)
    for each in run_detectors(compared, todo, options, report):
        done[each.row.detector] = each
        if options.folder is not None:
            save_checkpoint(options.folder, each)
    ranked = dict.fromkeys([*(spec.name for spec in specs), *done])
    return make_result(compared, labels, [done[name] for name in ranked], store or {})


def make_compared(traces: Sequence[Trace] | Path | str, labels: Labels, config: CompareConfig) -> Compared:
    """Groups, beams and checked folds of a comparison.

    Raises:
        UsageError: If these are no traces or no labels, labels belong to other traces, or a
            question would stand on two sides.
        NotEnoughDataError: If there are too few questions, or one class only.
    """
    traces, labels = as_traces(traces), as_labels(labels)
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
    if config.beams == "best":
        labels = labels.without(~best_beams(traces), "another beam of the question")
    groups = question_groups(traces)
    folds = {}
    for seed in config.seeds:
        if config.quick:
            made = single_split(labels.values, groups, labels.is_valid, seed=seed)
        else:
            made = cross_fit_folds(labels.values, groups, labels.is_valid, n_folds=config.n_folds, seed=seed)
        folds[seed] = check_questions(made, traces)
    return Compared(traces, labels, groups, folds, config)


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


def fold_reporter(
    on_progress: Callable[[Progress], None],
    names: Sequence[str],
    folds: Mapping[int, list[Split]],
    *,
    is_in_order: bool,
) -> FoldHook:
    """Tells the place in the whole comparison: also after a detector failed half-way.

    Args:
        on_progress: Called after each fold.
        names: The detectors in the order in which they run.
        folds: Their folds by seed.
        is_in_order: Whether one process runs them; with several, what is done is counted.
    """
    steps = [(name, seed, fold) for name in names for seed in folds for fold in range(len(folds[seed]))]
    reported = count(1)

    def report(detector: str, seed: int, fold: int) -> None:
        n_reported = next(reported)
        n_done = steps.index((detector, seed, fold)) + 1 if is_in_order else n_reported
        on_progress(Progress(detector, seed, fold, n_done, len(steps)))

    return report


def finish_detector(compared: Compared, spec: DetectorSpec, fits: Mapping[int, OutOfFold]) -> Finished:
    """The row and the per-sample scores of one detector from its scores of every seed.

    Raises:
        NotEnoughDataError: If the traces with a valid score lack a class, or nearly so.
        UnknownNameError: If the card names an array that does not exist.
    """
    row = detector_row(compared, spec.name, spec.card(), fits, settings=spec.settings)
    return Finished(row, sample_table(compared, spec.name, fits))


def run_detectors(
    compared: Compared, specs: Sequence[DetectorSpec], options: RunOptions, on_fold: FoldHook
) -> Iterator[Finished]:
    """Each detector as soon as all its seeds are done.

    Raises:
        As :func:`graphhalu.evaluation.running.run_specs`.
    """
    for spec, runs in run_specs(compared, specs, options, on_fold):
        yield _finish(compared, spec, runs)


def _finish(compared: Compared, spec: DetectorSpec, runs: Sequence[SeedRun]) -> Finished:
    """The row and the per-sample scores of one detector; a failure is a row too."""
    card: DetectorCard | None = None
    failure = next((run.failure for run in runs if run.failure is not None), None)
    try:
        card = spec.card()
        if failure is None:
            fits = {run.seed: run.fit for run in runs if run.fit is not None}
            return finish_detector(compared, spec, fits)
    except Exception as error:  # noqa: BLE001 - of another's code that must not stop the rest
        failure = failure or failure_text(error)
    key = compared.key(spec.name, spec.settings)
    row = failed_row(spec.name, card, failure, settings=spec.settings, key=key)
    return Finished(row, SAMPLE_SCHEMA.empty_table())


def make_result(
    compared: Compared, given: Labels, done: Sequence[Finished], store: Mapping[str, Any]
) -> Result:
    """The whole result: the tests against the baseline and the subgroups come last.

    Args:
        compared: What the detectors were run on.
        given: The labels before any beam was left out.
        done: The detectors in the order of the result.
        store: Identity of the traces, for the record.
    """
    rows = tuple(each.row for each in done)
    samples = pa.concat_tables([each.samples for each in done])
    scores = seed_scores(compared, samples)
    baseline, comparisons = baseline_tests(compared, rows, scores)
    labels, kept = compared.labels, compared.labels.is_valid
    digest = hashlib.sha256("\n".join(labels.trace_ids).encode()).hexdigest()
    labeller = {"name": labels.labeller, "meaning": labels.meaning}
    result = Result(
        config={**compared.config.model_dump(mode="json"), "detectors": [r.detector for r in rows]},
        provenance=provenance(),
        store={**store, "trace_ids_sha256": digest},
        labeller={**labeller, "settings": dict(labels.settings)},
        n_traces=int(kept.sum()),
        n_left_out=int((~given.is_valid).sum()),
        n_groups=len(np.unique(compared.groups[kept])),
        prevalence=float(labels.items[compared.is_kept].mean()),
        coverage=given.coverage,
        rows=rows,
        samples=samples,
        n_siblings=int((given.is_valid & ~kept).sum()),
        baseline=baseline,
        comparisons=comparisons,
        subgroups=subgroups(compared, scores),
        identity=compared.identity,
        level=labels.level,
    )
    if labels.level == "token":
        return replace(result, counts=token_counts(compared), notes=token_notes(compared))
    return result
