"""Out-of-fold scores of one detector: fitted without a question, then asked about it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import overload

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.detectors.base import Detector, checked_scores
from graphhalu.errors import GraphhaluError, NotEnoughDataError
from graphhalu.evaluation.calibration import Calibration
from graphhalu.evaluation.splits import visible_labels
from graphhalu.labels.labels import Labels
from graphhalu.safe_read import shown
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace


@dataclass(frozen=True)
class OutOfFold:
    """Scores of one detector, each from a model that never saw the trace's question.

    Attributes:
        values: Scores that can be pooled over folds; NaN where not valid.
        raw: Scores as the detector gave them; NaN where not valid.
        probability: Probability of being hallucinated, calibrated on the validation side of the
            fold; NaN where not valid, or where that side lacks a class.
        is_called: Whether the score reaches the threshold chosen on the validation side; false
            where there is no probability.
        is_valid: Whether the trace was tested and has a score.
        fold: The fold that tested the trace; -1 where none did.
        fit_s: Seconds of each fit.
        score_s: Seconds that scoring the tested traces took, in total.
        n_parameters: Numbers that the last fit chose; ``None`` where they are not counted.
    """

    values: Float[np.ndarray, "trace"]
    raw: Float[np.ndarray, "trace"]
    probability: Float[np.ndarray, "trace"]
    is_called: Bool[np.ndarray, "trace"]
    is_valid: Bool[np.ndarray, "trace"]
    fold: Int[np.ndarray, "trace"]
    fit_s: tuple[float, ...]
    score_s: float
    n_parameters: int | None = None

    @property
    def is_tested(self) -> Bool[np.ndarray, "trace"]:
        """Which traces were tested."""
        return self.fold >= 0

    @classmethod
    def empty(cls, n_traces: int) -> "OutOfFold":
        """Nothing tested yet; the arrays are filled fold by fold."""
        values, raw, probability = (np.full(n_traces, np.nan) for _ in range(3))
        is_called, is_valid = (np.zeros(n_traces, dtype=bool) for _ in range(2))
        fold = np.full(n_traces, -1)
        return cls(values, raw, probability, is_called, is_valid, fold, fit_s=(), score_s=0.0)

    def fill(self, number: int, places: Int[np.ndarray, "tested"], scored: "FoldScores") -> None:
        """Put in the scores of the traces that one fold tested."""
        self.values[places], self.raw[places] = scored.pooled, scored.raw
        self.probability[places], self.is_called[places] = scored.probability, scored.is_called
        self.is_valid[places], self.fold[places] = np.isfinite(scored.raw), number


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

    @property
    def pool(self) -> Sequence[Trace]:
        """The traces that these are taken from; see :func:`sibling_traces`."""
        return self.traces

    def __iter__(self) -> Iterator[Trace]:
        return (self.traces[index] for index in self.indices)


@dataclass(frozen=True)
class FoldScores:
    """Scores of some traces by the model of one fold; NaN where there is no valid one."""

    pooled: Float[np.ndarray, "tested"]
    raw: Float[np.ndarray, "tested"]
    probability: Float[np.ndarray, "tested"]
    is_called: Bool[np.ndarray, "tested"]
    score_s: float


@dataclass(frozen=True)
class FoldModel:
    """A detector fitted on one fold, with what its validation side says of its scores.

    Attributes:
        detector: The fitted detector.
        reference: Its scores of the validation side, which scores are pooled by.
        calibration: Fitted on the validation side; ``None`` where that lacks a class.
        fit_s: Seconds of the fit.
    """

    detector: Detector
    reference: Float[np.ndarray, "validation"]
    calibration: Calibration | None
    fit_s: float

    def score(self, traces: Sequence[Trace], indices: Int[np.ndarray, "tested"]) -> FoldScores:
        """Score some of the traces; they need not be those that it was fitted among.

        Raises:
            GraphhaluError: What the detector raised.
        """
        started = perf_counter()
        raw = _values(self.detector, traces, indices)
        score_s = perf_counter() - started
        calibration = self.calibration
        return FoldScores(
            standardise(raw, self.reference),
            raw,
            np.full(len(raw), np.nan) if calibration is None else calibration.probability(raw),
            np.zeros(len(raw), dtype=bool) if calibration is None else calibration.calls(raw),
            score_s,
        )


def fit_fold(
    make: Callable[[], Detector], traces: Sequence[Trace], labels: Labels, fold: Split
) -> FoldModel:
    """Fit a fresh detector on a fold, then calibrate it on the validation side.

    Raises:
        GraphhaluError: What the detector raised.
    """
    started = perf_counter()
    detector: object = make().fit(traces, visible_labels(labels, fold), fold)
    if not isinstance(detector, Detector):
        message = f"fit must return the detector, got {shown(detector)}"
        raise GraphhaluError(message)
    fit_s = perf_counter() - started
    reference = _values(detector, traces, fold.validation)
    known = np.isfinite(reference) & labels.is_valid[fold.validation]
    truth = labels.values[fold.validation][known]
    has_both = len(np.unique(truth)) == 2  # noqa: PLR2004
    calibration = Calibration.fit(reference[known], truth) if has_both else None
    return FoldModel(detector, reference, calibration, fit_s)


def cross_fit(
    make: Callable[[], Detector],
    traces: Sequence[Trace],
    labels: Labels,
    folds: Sequence[Split],
    *,
    on_fold: Callable[[int], None] = lambda _: None,
    on_model: Callable[[int, FoldModel], None] = lambda _number, _model: None,
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
        on_model: Called with each fitted model before it scores the test side.

    Raises:
        Exception: What the detector raised, with the fold in a note.
    """
    done, fit_s, score_s = OutOfFold.empty(len(traces)), [], 0.0
    n_parameters = None
    for number, fold in enumerate(folds):
        try:
            model = fit_fold(make, traces, labels, fold)
            on_model(number, model)
            scored = model.score(traces, fold.test)
        except Exception as error:
            error.add_note(f"in fold {number}")
            raise
        done.fill(number, fold.test, scored)
        fit_s.append(model.fit_s)
        score_s += scored.score_s
        n_parameters = model.detector.n_parameters
        on_fold(number)
    return replace(done, fit_s=tuple(fit_s), score_s=score_s, n_parameters=n_parameters)


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


def _values(
    detector: Detector, traces: Sequence[Trace], indices: Int[np.ndarray, "side"]
) -> Float[np.ndarray, "side"]:
    """Scores as float64, NaN where invalid; refuses scores that do not fit the traces."""
    scores = detector.score(TraceSubset(traces, indices.tolist()))
    return checked_scores(detector.card.name, scores, len(indices)).values
