"""Out-of-fold scores of the tokens: no model has seen the context of the answer that it scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.detectors.base import Detector
from graphhalu.errors import GraphhaluError
from graphhalu.evaluation.crossfit import TraceSubset, standardise
from graphhalu.evaluation.splits import visible_labels
from graphhalu.evaluation.token_spans import MarkedAnswer, best_threshold
from graphhalu.labels.labels import Labels
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace


@dataclass(frozen=True)
class LabelledAnswers:
    """What token detectors are fitted on and judged by.

    Attributes:
        traces: All traces; indices of folds point into them.
        labels: Labels of their tokens.
        marked: Their characters.
    """

    traces: Sequence[Trace]
    labels: Labels
    marked: Sequence[MarkedAnswer]


@dataclass
class TokenOutOfFold:
    """Scores of the tokens of each trace by the model of the fold that tests it.

    Attributes:
        values: Scores that can be pooled over folds; NaN where not valid or not tested.
        raw: Scores as the detector gave them.
        is_called: Whether the score reaches the threshold of the fold, which makes the F1 of
            characters highest on the validation side.
        fold: The fold that tested the trace; -1 where none did.
        fit_s: Seconds of each fit.
        score_s: Seconds that scoring the tested traces took, in total.
        reports: What each fit says of itself.
    """

    values: list[Float[np.ndarray, "_"]]
    raw: list[Float[np.ndarray, "_"]]
    is_called: list[Bool[np.ndarray, "_"]]
    fold: Int[np.ndarray, "trace"]
    fit_s: list[float] = field(default_factory=list)
    score_s: float = 0.0
    reports: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def empty(cls, labels: Labels) -> "TokenOutOfFold":
        """Nothing tested yet."""
        lengths = [len(values) for values in labels.tokens or ()]
        return cls(
            [np.full(n, np.nan) for n in lengths],
            [np.full(n, np.nan) for n in lengths],
            [np.zeros(n, dtype=np.bool_) for n in lengths],
            np.full(len(lengths), -1, dtype=np.int64),
        )


def cross_fit_tokens(
    make: Callable[[], Detector],
    answers: LabelledAnswers,
    folds: Sequence[Split],
    on_fold: Callable[[], None] = lambda: None,
) -> TokenOutOfFold:
    """Fit on each fold, choose the threshold on its validation side, score its test side.

    Scores of a fold are put on one scale with those of others by the scores of its validation
    side, as in :func:`graphhalu.evaluation.crossfit.standardise`; no label is looked at for that.

    Args:
        make: Gives a fresh detector for each fold.
        answers: All of them.
        folds: Checked folds, grouped by context.
        on_fold: Called when a fold is done.

    Raises:
        GraphhaluError: What the detector raised, with the fold in a note.
    """
    done = TokenOutOfFold.empty(answers.labels)
    for number, fold in enumerate(folds):
        try:
            _fit_and_score(make(), answers, number, fold, done)
        except GraphhaluError as error:
            error.add_note(f"in fold {number}")
            raise
        on_fold()
    return done


def _fit_and_score(
    detector: Detector,
    answers: LabelledAnswers,
    number: int,
    fold: Split,
    done: TokenOutOfFold,
) -> None:
    started = perf_counter()
    detector.fit(answers.traces, visible_labels(answers.labels, fold), fold)
    done.fit_s.append(perf_counter() - started)
    validation, tested = fold.validation.tolist(), fold.test.tolist()
    held_out = scored(detector, answers.traces, validation)
    threshold = best_threshold(held_out, [answers.marked[index] for index in validation])
    started = perf_counter()
    found = scored(detector, answers.traces, tested)
    done.score_s += perf_counter() - started
    reference = np.concatenate([np.zeros(0), *held_out])
    for index, raw in zip(tested, found, strict=True):
        done.raw[index], done.fold[index] = raw, number
        done.values[index] = standardise(raw, reference)
        done.is_called[index] = np.where(np.isfinite(raw), raw >= threshold, False)
    done.reports.append(
        {"fold": number, "threshold": threshold, **getattr(detector, "training_report", {})}
    )


def scored(
    detector: Detector, traces: Sequence[Trace], indices: Sequence[int]
) -> list[Float[np.ndarray, "_"]]:
    """Scores of some traces as float64, NaN where not valid; refuses those that do not fit."""
    chosen = TraceSubset(traces, indices)
    scores = detector.score(chosen)
    lengths = None if scores.lengths is None else scores.lengths.tolist()
    expected = [trace.answer_length for trace in chosen]
    if lengths != expected:
        message = (
            f"{detector.card.name}: expected scores of {expected[:5]} … tokens, got "
            f"{(lengths or [])[:5]} …"
        )
        raise GraphhaluError(message)
    return [
        np.where(np.isfinite(each), each, np.nan).astype(np.float64) for each in scores.by_trace()
    ]
