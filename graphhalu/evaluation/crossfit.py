"""Out-of-fold scores of one detector: fitted without a question, then asked about it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import overload

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.detectors.base import Detector, Scores
from graphhalu.errors import GraphhaluError, NonFiniteError, NotEnoughDataError
from graphhalu.evaluation.splits import visible_labels
from graphhalu.labels.labels import Labels
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace


@dataclass(frozen=True)
class OutOfFold:
    """Scores of one detector, each from a model that never saw the trace's question.

    Attributes:
        values: Scores that can be pooled over folds; NaN where not valid.
        raw: Scores as the detector gave them; NaN where not valid.
        is_valid: Whether the trace was tested and has a score.
        fold: The fold that tested the trace; -1 where none did.
        fit_s: Seconds of each fit.
        score_s: Seconds that scoring the tested traces took, in total.
    """

    values: Float[np.ndarray, "trace"]
    raw: Float[np.ndarray, "trace"]
    is_valid: Bool[np.ndarray, "trace"]
    fold: Int[np.ndarray, "trace"]
    fit_s: tuple[float, ...]
    score_s: float

    @property
    def is_tested(self) -> Bool[np.ndarray, "trace"]:
        """Which traces were tested."""
        return self.fold >= 0


@dataclass(frozen=True)
class TraceSubset(Sequence[Trace]):
    """Some traces of a sequence, read when asked for."""

    traces: Sequence[Trace]
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Trace: ...
    @overload
    def __getitem__(self, index: slice) -> "TraceSubset": ...
    def __getitem__(self, index: int | slice) -> "Trace | TraceSubset":
        """One trace, or a view of some."""
        if isinstance(index, slice):
            return TraceSubset(self.traces, self.indices[index])
        return self.traces[self.indices[index]]

    def __iter__(self) -> Iterator[Trace]:
        return (self.traces[index] for index in self.indices)


def cross_fit(
    make: Callable[[], Detector],
    traces: Sequence[Trace],
    labels: Labels,
    folds: Sequence[Split],
    *,
    on_fold: Callable[[int], None] = lambda _: None,
) -> OutOfFold:
    """Fit on each fold, score its test side, and pool the scores.

    Models of different folds may score on different scales, and AUROC over pooled scores
    compares them. So each fold's scores pass through :func:`standardise`, fitted on the
    validation side. That is increasing, so it changes no ranking within a fold; it sees no
    label and no test trace, so nothing leaks.

    Args:
        make: Gives a fresh detector for each fold.
        traces: All traces; indices of the folds point into them.
        labels: Labels of the same traces in the same order.
        folds: Checked folds; see :func:`graphhalu.evaluation.splits.check_folds`.
        on_fold: Called with the fold's number when it is done.

    Raises:
        GraphhaluError: What the detector raised, with the fold in a note.
    """
    n_traces = len(traces)
    values, raw = np.full(n_traces, np.nan), np.full(n_traces, np.nan)
    fold_of, fit_s, score_s = np.full(n_traces, -1), [], 0.0
    for number, fold in enumerate(folds):
        try:
            done = _one_fold(make, traces, labels, fold)
        except GraphhaluError as error:
            error.add_note(f"in fold {number}")
            raise
        values[fold.test], raw[fold.test], fold_of[fold.test] = done.pooled, done.raw, number
        fit_s.append(done.fit_s)
        score_s += done.score_s
        on_fold(number)
    return OutOfFold(values, raw, np.isfinite(raw), fold_of, tuple(fit_s), score_s)


def standardise(
    scores: Float[np.ndarray, "test"], reference: Float[np.ndarray, "validation"]
) -> Float[np.ndarray, "test"]:
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
        message = "no valid score on the validation side: scores of folds cannot be pooled"
        raise NotEnoughDataError(message)
    clipped = np.clip(known, *np.quantile(known, [0.05, 0.95]))
    spread = next((s.std() for s in (clipped, known) if _is_spread(s)), 1.0)
    return (scores - clipped.mean()) / spread


def _is_spread(values: Float[np.ndarray, "validation"]) -> bool:
    """Whether values differ by more than rounding, which division would blow up."""
    return bool(values.std() > 1e-9 * np.abs(values).max())


@dataclass(frozen=True)
class _FoldDone:
    pooled: Float[np.ndarray, "test"]
    raw: Float[np.ndarray, "test"]
    fit_s: float
    score_s: float


def _one_fold(
    make: Callable[[], Detector], traces: Sequence[Trace], labels: Labels, fold: Split
) -> _FoldDone:
    started = perf_counter()
    detector = make().fit(traces, visible_labels(labels, fold), fold)
    fitted = perf_counter()
    raw = _values(detector, traces, fold.test)
    scored = perf_counter()
    pooled = standardise(raw, _values(detector, traces, fold.validation))
    return _FoldDone(pooled, raw, fitted - started, scored - fitted)


def _values(
    detector: Detector, traces: Sequence[Trace], indices: Int[np.ndarray, "side"]
) -> Float[np.ndarray, "side"]:
    """Scores as float64, NaN where invalid; refuses scores that do not fit the traces."""
    scores: Scores = detector.score(TraceSubset(traces, indices.tolist()))
    if scores.values.shape != indices.shape or scores.is_valid.shape != indices.shape:
        message = f"expected {len(indices)} scores, got {len(scores.values)}"
        raise GraphhaluError(message)
    n_bad = int((~np.isfinite(scores.values[scores.is_valid])).sum())
    if n_bad:
        message = f"{n_bad} scores are marked valid and are not finite"
        raise NonFiniteError(message)
    return np.where(scores.is_valid, scores.values, np.nan).astype(np.float64)
