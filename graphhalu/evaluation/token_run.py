"""The comparison of token detectors: grouped cross-fitting, metrics, and the position control."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from graphhalu.config import Config
from graphhalu.detectors.base import Detector
from graphhalu.detectors.registry import DETECTORS, POSITION_CONTROL, detector_names
from graphhalu.errors import GraphhaluError, UsageError
from graphhalu.evaluation.significance import holm
from graphhalu.evaluation.splits import check_questions, cross_fit_folds, single_split
from graphhalu.evaluation.token_crossfit import LabelledAnswers, TokenOutOfFold, cross_fit_tokens
from graphhalu.evaluation.token_metrics import (
    Measured,
    Resampling,
    differences,
    measure,
    summarised,
)
from graphhalu.evaluation.token_result import TOKEN_SCHEMA, TokenCounts, TokenResult, TokenRow
from graphhalu.evaluation.token_spans import SPAN_RULE, MarkedAnswer, marked_answer
from graphhalu.labels.groups import question_groups
from graphhalu.labels.labels import Labels
from graphhalu.labels.spans import n_lost_spans
from graphhalu.labels.tokens import label_tokens
from graphhalu.provenance import provenance
from graphhalu.splits import Split
from graphhalu.traces.schema import TraceRecord
from graphhalu.traces.trace import Trace

_UNKNOWN: Final = "unknown"


class TokenCompareConfig(Config):
    """Settings of a comparison of token detectors."""

    detectors: tuple[str, ...] = ()
    """Names of token detectors; all if empty. The position control is always among them."""
    settings: Mapping[str, Mapping[str, Any]] = {}
    """What differs from the defaults of a detector, by its name; its seed is that of the run."""
    n_folds: Annotated[int, Field(ge=3, le=50)] = 5
    """Folds of the cross-fit: one tests, one validates, the rest train."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds of the folds and of detectors; metrics are means over seeds."""
    quick: bool = False
    """One grouped 60 / 20 / 20 split a seed in place of folds: a fifth of the answers is tested."""
    n_resamples: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Resamples of contexts for the intervals."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Coverage of the intervals."""
    bootstrap_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the resamples; all detectors see the same ones."""

    @field_validator("seeds", "detectors")
    @classmethod
    def _differ(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            message = f"each only once, got {list(values)}"
            raise ValueError(message)
        return values

    @field_validator("settings")
    @classmethod
    def _without_seed(cls, values: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
        if any("seed" in each for each in values.values()):
            message = "the seed of a detector is that of the run: use seeds"
            raise ValueError(message)
        return values

    def names(self) -> tuple[str, ...]:
        """The detectors that are run."""
        asked = self.detectors or tuple(detector_names("token"))
        return asked if POSITION_CONTROL in asked else (POSITION_CONTROL, *asked)


@dataclass(frozen=True)
class _Run(LabelledAnswers):
    """What every detector is run on, with the folds of each seed."""

    resampling: Resampling
    folds: list[list[Split]]


def compare_tokens(
    traces: Sequence[Trace],
    config: TokenCompareConfig,
    *,
    store: Mapping[str, Any] | None = None,
    on_fit: Callable[[int, int], None] = lambda _done, _total: None,
) -> TokenResult:
    """Cross-fit token detectors on the same folds and compare them with the position control.

    Answers to one context are never on two sides of a fold, nor are contexts that the data set
    holds twice. A detector that fails has a row that says why.

    Args:
        traces: Given answers with marked spans.
        config: Settings.
        store: Identity of the traces, for the record.
        on_fit: Called with the fits done and all fits.

    Raises:
        NotEnoughDataError: If no token can be labelled, or there are too few contexts.
        UnknownNameError: If a detector is not known.
        ConfigError: If a setting of a detector is not valid.
    """
    names = config.names()
    makers = [_maker(name, config) for name in names]
    answers = _answers(traces, config)
    n_total = len(names) * sum(len(folds) for folds in answers.folds)
    done = [0]

    def fit_done() -> None:
        done[0] += 1
        on_fit(done[0], n_total)

    found = [
        _detector(name, make, answers, config, fit_done)
        for name, make in zip(names, makers, strict=True)
    ]
    samples = [table for each in found for table in each.samples]
    return TokenResult(
        config=config.model_dump(mode="json"),
        provenance=provenance(),
        store=dict(store or {}),
        counts=_counts(answers),
        notes=_notes(answers),
        rows=_against_position(found, config.level),
        samples=pa.concat_tables(samples) if samples else TOKEN_SCHEMA.empty_table(),
    )


class _Found(NamedTuple):
    """What came of one detector; nothing measured where it failed."""

    row: TokenRow
    measured: list[Measured]
    samples: list[pa.Table]


def _detector(
    name: str,
    make: Callable[[int], Detector],
    answers: _Run,
    config: TokenCompareConfig,
    on_fold: Callable[[], None],
) -> _Found:
    try:
        found = _seeds(make, answers, config, on_fold)
    except GraphhaluError as error:
        reason = "; ".join([str(error), *_notes_of(error)])
        return _Found(replace(_row(name), failure=reason), [], [])
    measured = [measure(each, answers.labels, answers.marked, answers.resampling) for each in found]
    samples = [
        _samples(name, seed, each, answers.labels)
        for seed, each in zip(config.seeds, found, strict=True)
    ]
    return _Found(_filled(name, found, measured, config), measured, samples)


def _maker(name: str, config: TokenCompareConfig) -> Callable[[int], Detector]:
    kind = DETECTORS.get(name)
    values = dict(config.settings.get(name, {}))
    kind.settings(**values)  # refused before anything is run
    return lambda seed: kind(**kind.settings(**values, seed=seed))


def _answers(traces: Sequence[Trace], config: TokenCompareConfig) -> _Run:
    unknown = [name for name in config.settings if name not in config.names()]
    if unknown:
        message = f"settings of {unknown[0]!r}, which is not among {', '.join(config.names())}"
        raise UsageError(message)
    labels = label_tokens([trace.record for trace in traces])
    groups = question_groups(traces)
    truth, is_valid = labels.values, labels.is_valid
    folds = [
        single_split(truth, groups, is_valid, seed=seed)
        if config.quick
        else cross_fit_folds(truth, groups, is_valid, n_folds=config.n_folds, seed=seed)
        for seed in config.seeds
    ]
    resampling = Resampling(groups, config.n_resamples, config.bootstrap_seed, config.level)
    checked = [check_questions(each, traces) for each in folds]
    marked = [marked_answer(trace.record) for trace in traces]
    return _Run(traces, labels, marked, resampling, checked)


def _seeds(
    make: Callable[[int], Detector],
    answers: _Run,
    config: TokenCompareConfig,
    on_fold: Callable[[], None],
) -> list[TokenOutOfFold]:
    return [
        cross_fit_tokens(partial(make, seed), answers, folds, on_fold)
        for seed, folds in zip(config.seeds, answers.folds, strict=True)
    ]


def _row(name: str) -> TokenRow:
    card = DETECTORS.get(name).card
    return TokenRow(name, card.summary, card.source, card.inputs, card.is_control)


def _filled(
    name: str,
    found: Sequence[TokenOutOfFold],
    measured: Sequence[Measured],
    config: TokenCompareConfig,
) -> TokenRow:
    coverage, n_tested = [], 0
    for each in found:
        tested = np.flatnonzero(each.fold >= 0).tolist()
        n_tested += len(tested)
        coverage.append(np.isfinite(np.concatenate([each.raw[index] for index in tested])).mean())
    return replace(
        _row(name),
        metrics=summarised(measured, config.level),
        coverage=float(np.mean(coverage)),
        fit_s=float(np.mean([seconds for each in found for seconds in each.fit_s])),
        score_ms=1000 * sum(each.score_s for each in found) / n_tested,
        choices=tuple(
            {"seed": seed, **report}
            for seed, each in zip(config.seeds, found, strict=True)
            for report in each.reports
        ),
    )


def _against_position(found: Sequence[_Found], level: float) -> tuple[TokenRow, ...]:
    """The rows with their differences from the position control, tested together."""
    measured = {each.row.detector: each.measured for each in found if each.measured}
    control = measured.pop(POSITION_CONTROL, None)
    if control is None:
        return tuple(each.row for each in found)
    against = {name: differences(seeds, control, level) for name, seeds in measured.items()}
    tested = {
        name: p_value
        for name, each in against.items()
        if "token_auroc" in each and (p_value := each["token_auroc"].p_value) is not None
    }
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return tuple(
        replace(row, differences=against.get(row.detector, {}), p_holm=corrected.get(row.detector))
        for row, *_ in found
    )


def _samples(name: str, seed: int, found: TokenOutOfFold, labels: Labels) -> pa.Table:
    tested = np.flatnonzero(found.fold >= 0).tolist()
    lengths = [len(labels.token_labels("")[index]) for index in tested]
    raw, score = (
        np.concatenate([values[index] for index in tested]) for values in (found.raw, found.values)
    )
    is_valid = np.isfinite(raw)
    columns = {
        "detector": [name] * len(raw),
        "seed": np.full(len(raw), seed),
        "fold": np.repeat(found.fold[tested], lengths),
        "trace_id": np.repeat([labels.trace_ids[index] for index in tested], lengths),
        "token": np.concatenate([np.arange(length) for length in lengths]),
        "label": np.concatenate([labels.token_labels("")[index] for index in tested]).astype(
            np.int8
        ),
        "score": pa.array(score, mask=~is_valid),
        "raw_score": pa.array(raw, mask=~is_valid),
        "is_valid": is_valid,
        "is_called": np.concatenate([found.is_called[index] for index in tested]),
    }
    return pa.table(columns, schema=TOKEN_SCHEMA)


def _counts(answers: _Run) -> TokenCounts:
    labels = answers.labels
    kept = np.flatnonzero(labels.is_valid).tolist()
    left_out = Counter(
        reason for reason, told in zip(labels.reasons, labels.is_valid, strict=True) if not told
    )
    records = [answers.traces[index].record for index in kept]
    marked = [answers.marked[index] for index in kept]
    values = [labels.token_labels("")[index] for index in kept]
    return TokenCounts(
        n_traces=len(kept),
        n_left_out=dict(left_out),
        n_groups=len(np.unique(answers.resampling.groups[kept])),
        n_hallucinated=int(labels.values[kept].sum()),
        n_tokens=sum(len(each) for each in values),
        n_hallucinated_tokens=int(sum(each.sum() for each in values)),
        n_spans=sum(len(record.given_spans) for record in records),
        n_lost_spans=sum(n_lost_spans(record) for record in records),
        character_share=_character_share(records, marked),
        n_on_policy=sum(record.is_on_policy for record in records),
        writers=_writers(records, labels.values[kept].tolist()),
    )


def _character_share(records: Sequence[TraceRecord], marked: Sequence[MarkedAnswer]) -> float:
    n_characters = sum(len("".join(record.answer.split())) for record in records)
    return sum(each.n_marked for each in marked) / max(n_characters, 1)


def _writers(records: Sequence[TraceRecord], truth: Sequence[int]) -> dict[str, tuple[int, float]]:
    """Answers by who wrote them, the most frequent first."""
    found: dict[str, list[int]] = {}
    for record, value in zip(records, truth, strict=True):
        given = record.metadata.get("given")
        source = given.get("source") if isinstance(given, Mapping) else None
        found.setdefault(str(source or _UNKNOWN), []).append(value)
    order = sorted(found, key=lambda name: -len(found[name]))
    return {name: (len(found[name]), float(np.mean(found[name]))) for name in order}


def _notes(answers: _Run) -> tuple[str, ...]:
    """What a reader must know before trusting a number."""
    labels = answers.labels
    records = [answers.traces[int(index)].record for index in np.flatnonzero(labels.is_valid)]
    n_others = sum(not record.is_on_policy for record in records)
    notes = [f"Spans: {SPAN_RULE}."]
    if n_others:
        notes.append(
            f"Off-policy: {n_others} of {len(records)} answers were written by others, and the "
            "replaying model only read them. Its attention and likelihood say how it reads such "
            "a text, not how the writer came to it."
        )
    if len(_writers(records, [0] * len(records))) > 1:
        notes.append(
            "Writers hallucinate at different rates, so telling them apart by style already "
            "ranks answers; within_auroc compares the tokens of one answer only."
        )
    return tuple(notes)


def _notes_of(error: Exception) -> list[str]:
    return list(getattr(error, "__notes__", ()))
