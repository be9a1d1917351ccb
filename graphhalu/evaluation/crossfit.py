"""Out-of-fold scores of one detector: each from a model that was fitted without its question."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.core.errors import GraphhaluError, NotEnoughDataError
from graphhalu.core.files import shown
from graphhalu.core.splits import Split
from graphhalu.detectors.base import ChosenTraces, Detector, checked_scores
from graphhalu.evaluation.calibration import Calibration
from graphhalu.evaluation.protocol import visible_labels
from graphhalu.evaluation.token_metrics import best_threshold, marked_answer
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace


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
    reference: Float[np.ndarray, "validation"]
    calibration: Calibration | None
    fit_s: float


@dataclass(frozen=True)
class OutOfFold:
    """Scores of one detector and seed, each from a model that never saw the trace's question.

    The items are those of the labels: traces, or the answer tokens of all traces.

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

    values: Float[np.ndarray, "item"]
    raw: Float[np.ndarray, "item"]
    probability: Float[np.ndarray, "item"]
    is_predicted_positive: Bool[np.ndarray, "item"]
    fold: Int[np.ndarray, "item"]
    fit_s: tuple[float, ...] = ()
    score_s: float = 0.0
    n_parameters: int | None = None
    choices: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def empty(cls, n_items: int) -> "OutOfFold":
        """Nothing tested yet; the arrays are filled fold by fold."""
        values, raw, probability = (np.full(n_items, np.nan) for _ in range(3))
        return cls(values, raw, probability, np.zeros(n_items, dtype=bool), np.full(n_items, -1))

    @property
    def is_valid(self) -> Bool[np.ndarray, "item"]:
        """Whether the item was tested and has a score."""
        return np.isfinite(self.raw)

    @property
    def is_tested(self) -> Bool[np.ndarray, "item"]:
        """Whether the item was tested."""
        return self.fold >= 0

    @property
    def median_filled(self) -> Float[np.ndarray, "item"]:
        """The values, with their median for tested items without one; NaN where not tested."""
        is_missing = self.is_tested & ~self.is_valid
        return np.where(is_missing, np.median(self.values[self.is_valid]), self.values)

    def with_fold(
        self,
        number: int,
        model: FoldModel,
        traces: Sequence[Trace],
        indices: Int[np.ndarray, "tested"],
        items: Int[np.ndarray, "item"],
    ) -> "OutOfFold":
        """The same with the scores that the model of one fold gives some traces.

        Args:
            number: Number of the fold.
            model: Its model.
            traces: Traces, which need not be those that it was fitted among.
            indices: Places of the traces to score.
            items: Places of their items.

        Raises:
            GraphhaluError: What the detector raised.
        """
        started = perf_counter()
        raw = _values(model.detector, traces, indices)
        score_s = perf_counter() - started
        self.values[items], self.raw[items] = standardise(raw, model.reference), raw
        self.fold[items] = number
        if model.calibration is not None:
            self.probability[items] = model.calibration.probability(raw)
            self.is_predicted_positive[items] = raw >= model.calibration.threshold
        threshold = None if model.calibration is None else model.calibration.threshold
        report: Mapping[str, Any] = getattr(model.detector, "training_report", {})
        return replace(
            self,
            fit_s=(*self.fit_s, model.fit_s),
            score_s=self.score_s + score_s,
            n_parameters=model.detector.n_parameters,
            choices=(*self.choices, {"fold": number, "threshold": threshold, **report}),
        )


def fit_fold(make: Callable[[], Detector], traces: Sequence[Trace], labels: Labels, fold: Split) -> FoldModel:
    """Fit a fresh detector on a fold, then calibrate it on the validation side.

    The threshold is that of the best F1 there: of answers, or at token level of the characters
    of marked spans (:func:`graphhalu.evaluation.token_metrics.best_threshold`).

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
    items = labels.places(fold.validation)
    known = np.isfinite(reference) & labels.is_valid[labels.owner[items]]
    truth = labels.items[items][known]
    calibration = None
    if len(np.unique(truth)) == 2:  # noqa: PLR2004
        threshold = None
        if labels.level == "token":
            marked = [marked_answer(traces[index].record) for index in fold.validation.tolist()]
            threshold = best_threshold(reference, marked)
        calibration = Calibration.fit(reference[known], truth, threshold=threshold)
    return FoldModel(detector, reference, calibration, fit_s)


def cross_fit(
    make: Callable[[], Detector],
    traces: Sequence[Trace],
    labels: Labels,
    folds: Sequence[Split],
    *,
    on_fold: Callable[[int], None] = lambda _: None,
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
        folds: Checked folds; see :func:`graphhalu.evaluation.protocol.check_questions`.
        on_fold: Called with the fold's number when it is done.

    Raises:
        Exception: What the detector raised, with the fold in a note.
    """
    done = OutOfFold.empty(len(labels.items))
    for number, fold in enumerate(folds):
        try:
            model = fit_fold(make, traces, labels, fold)
            done = done.with_fold(number, model, traces, fold.test, labels.places(fold.test))
        except Exception as error:
            error.add_note(f"in fold {number}")
            raise
        on_fold(number)
    return done


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
) -> Float[np.ndarray, "item"]:
    """Scores as float64, NaN where invalid; refuses scores that do not fit the traces."""
    chosen = ChosenTraces(traces, tuple(indices.tolist()))
    return checked_scores(detector, detector.score(chosen), chosen).values
