"""Calibration: probabilities of scores, and the threshold above which an answer is called hallucinated.

Both are chosen on the validation side.

The rule: isotonic regression where each class has 200 validation traces or more, since it fits
any rising curve and needs many points for that; Platt's logistic curve below. Both never fall,
so a score is never flipped and no order is turned round.

The threshold of answers has the best F1 of answers, that of tokens the best F1 of characters in
marked spans. White space counts nowhere: tokenizers put it before a word and people mark around it.
Every other character belongs to the first token that covers it, so characters add up over tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import model_validator
from scipy.special import expit, log_expit

from graphhalu.core.config import Config, validate
from graphhalu.core.errors import UsageError
from graphhalu.core.files import read_json_object
from graphhalu.evaluation.metrics import Floats, Ints, Mask, check_scores, class_counts, tie_order
from graphhalu.traces.schema import TraceRecord

CALIBRATION_FILE: Final = "calibration.json"
"""Beside a saved detector."""
ISOTONIC_MINIMUM: Final = 200
"""Validation traces of the rarer class from which on isotonic regression is taken."""

MOST_SEEN: Final = 5_000
"""Validation scores that are kept with a calibration at most."""

_REACH: Final = 10.0

Method = Literal["platt", "isotonic"]


class Calibration(Config):
    """Turns scores of one fitted detector into probabilities and decisions."""

    method: Method
    """Which of the two curves."""
    threshold: float
    """Scores at or above it are predicted positive; by default that of the best F1."""
    n_hallucinated: int
    """Hallucinated traces that it was fitted on."""
    n_correct: int
    """Correct traces that it was fitted on."""
    slope: float = 0.0
    """Platt: rise of the logit for each unit of the score."""
    centre: float = 0.0
    """Platt: score at which the logit is the intercept."""
    intercept: float = 0.0
    """Platt: logit at the centre."""
    reach: float = 0.0
    """Platt: scores further than this from the centre count as this far."""
    scores: tuple[float, ...] = ()
    """Isotonic: the points between which the probability is linear, rising."""
    probabilities: tuple[float, ...] = ()
    """Isotonic: the probability at each of them, never falling."""
    seen_scores: tuple[float, ...] = ()
    """Scores that it was fitted on, by which other thresholds are chosen; a random share of very many."""
    seen_labels: tuple[int, ...] = ()
    """Their labels."""

    @model_validator(mode="after")
    def _is_a_curve(self) -> "Calibration":
        if len(self.seen_scores) != len(self.seen_labels):
            raise ValueError(f"{len(self.seen_scores)} scores with {len(self.seen_labels)} labels")
        if len(self.scores) != len(self.probabilities) or (self.method == "isotonic" and not self.scores):
            raise ValueError(f"{len(self.scores)} scores with {len(self.probabilities)} probabilities")
        if any(list(points) != sorted(points) for points in (self.scores, self.probabilities)):
            raise ValueError("a curve that falls")
        return self

    @classmethod
    def fit(
        cls, scores: Floats, labels: Ints, *, method: Method | None = None, threshold: float | None = None
    ) -> "Calibration":
        """Fit on traces, or tokens, that the detector was not trained on.

        Args:
            scores: Scores of one fitted detector; finite, higher means more likely hallucinated.
            labels: 1 = hallucinated, 0 = correct.
            method: The curve; by default the rule of this module decides.
            threshold: From which on scores are predicted positive; by default that of the best
                F1 of these traces.

        Raises:
            ValueError: If a score is not finite, or a label is neither 0 nor 1.
            NotEnoughDataError: If one class is missing.
        """
        check_scores(scores, labels)
        counts: dict[str, Any] = {"n_hallucinated": int(labels.sum()), "n_correct": int((1 - labels).sum())}
        method = method or ("isotonic" if min(counts.values()) >= ISOTONIC_MINIMUM else "platt")
        curve: dict[str, Any] = (_isotonic if method == "isotonic" else _platt)(scores, labels)
        threshold = best_f1_threshold(scores, labels) if threshold is None else threshold
        kept = np.arange(len(scores))
        if len(scores) > MOST_SEEN:
            kept = np.sort(np.random.default_rng(0).choice(kept, MOST_SEEN, replace=False))
        seen: dict[str, Any] = {
            "seen_scores": tuple(scores[kept].tolist()),
            "seen_labels": tuple(labels[kept].tolist()),
        }
        return cls(method=method, threshold=threshold, **counts, **curve, **seen)

    def threshold_at_fpr(self, target: float) -> float:
        """The lowest threshold that calls at most this share of correct validation answers hallucinated.

        Raises:
            UsageError: If validation scores were not kept.
        """
        return threshold_at(*self._seen(), target)

    def threshold_at_precision(self, target: float) -> float:
        """The lowest threshold at which this share of the validation answers above it is hallucinated.

        Raises:
            UsageError: If validation scores were not kept, or no threshold reaches the target.
        """
        scores, labels = self._seen()
        hits, alarms = class_counts(scores, labels)
        precision = hits / (hits + alarms)
        reached = np.flatnonzero(precision >= target)
        if not len(reached):
            raise UsageError(
                f"no threshold reaches a precision of {target:g} on the {len(scores)} validation answers of "
                f"this detector; the best is {precision.max():.3f}\n  Ask for less, or use --target-fpr"
            )
        return float(np.unique(scores)[::-1][reached[-1]])

    def _seen(self) -> tuple[Floats, Ints]:
        if not self.seen_scores:
            raise UsageError(
                "this detector was saved without its validation scores, so no threshold can be chosen by a "
                "target\n  Train it again, or use --threshold with a probability"
            )
        return np.array(self.seen_scores), np.array(self.seen_labels)

    def probability(self, scores: Floats) -> Floats:
        """Probability of being hallucinated, as common as on the validation side; NaN of NaN."""
        if self.method == "isotonic":
            return np.interp(scores, self.scores, self.probabilities)
        distance = np.clip(scores - self.centre, -self.reach, self.reach)
        return expit(self.slope * distance + self.intercept)

    def is_predicted_positive(self, scores: Floats) -> Mask:
        """Which scores reach the threshold; NaN does not."""
        return scores >= self.threshold


def read_calibration(path: Path) -> Calibration | None:
    """The calibration that lies beside a saved detector, or ``None`` if there is no such file.

    Raises:
        DataFileError: If the file cannot be read.
        ConfigError: If a field is missing, unknown or of another type.
    """
    if not path.exists():
        return None
    values = read_json_object(path, way_out="Train the detector again")
    return validate(Calibration, values, source="a saved calibration")


def threshold_at(scores: Floats, labels: Ints, rate: float) -> float:
    """The lowest threshold that flags at most a share ``rate`` of the items of label 0.

    Scores at or above it are flagged; an item without a score is not. With fewer than
    ``1 / rate`` items of label 0 it lies just above the highest of them.

    Args:
        scores: Higher where label 1 is more likely; NaN if unknown.
        labels: 0 or 1.
        rate: In (0, 1).
    """
    negative = scores[labels == 0]
    ordered = np.sort(negative[np.isfinite(negative)])[::-1]
    # 0.1 of 30 items are 3, whatever rounding makes of the product
    n_allowed = int(np.floor(rate * len(negative) + 1e-9))
    if n_allowed >= len(ordered):
        return float(np.nanmin(scores))
    return float(np.nextafter(ordered[n_allowed], np.inf))


def best_f1_threshold(scores: Floats, labels: Ints) -> float:
    """The score at or above which predicting hallucinated gives the best F1; the highest of equals.

    Where nine of ten answers are hallucinated this may well be the lowest score: to call every
    answer so then has the best F1.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    hits, alarms = class_counts(scores, labels)
    best = int(np.argmax(hits / (hits[-1] + hits + alarms)))
    return float(np.unique(scores)[::-1][best])


@dataclass(frozen=True)
class MarkedAnswer:
    """Characters of an answer, token by token, and its marked spans.

    Attributes:
        size: Characters of each token.
        marked: Of them those in a marked span.
        spans: Of them those in each span.
        span_size: Characters of each span, also those that no token covers.
        n_marked: Characters in any span, also those that no token covers.
    """

    size: Int[np.ndarray, "token"]
    marked: Int[np.ndarray, "token"]
    spans: Int[np.ndarray, "span token"]
    span_size: Int[np.ndarray, "span"]
    n_marked: int


def marked_answer(record: TraceRecord) -> MarkedAnswer:
    """The characters of a given answer."""
    n_tokens = len(record.answer_offsets)
    owner = np.full(len(record.answer), -1)
    for place in reversed(range(n_tokens)):
        start, stop = record.answer_offsets[place]
        owner[start:stop] = place
    is_text = np.array([not character.isspace() for character in record.answer], dtype=np.bool_)
    spans = np.zeros((len(record.given_spans), len(record.answer)), dtype=np.bool_)
    for number, (start, stop) in enumerate(record.given_spans):
        spans[number, start:stop] = is_text[start:stop]
    is_marked: Bool[np.ndarray, "character"] = spans.sum(axis=0) > 0
    size, marked, *of_spans = (
        np.bincount(owner[row & (owner >= 0)], minlength=n_tokens) for row in (is_text, is_marked, *spans)
    )
    by_token = np.array(of_spans, dtype=np.int64).reshape(len(spans), n_tokens)
    return MarkedAnswer(size, marked, by_token, spans.sum(axis=1), int(is_marked.sum()))


def best_character_threshold(scores: Floats, answers: Sequence[MarkedAnswer]) -> float | None:
    """The lowest score to predict positive so that the F1 of characters is highest.

    Args:
        scores: Of the tokens of all answers, answer after answer; tokens without a score are
            never predicted positive.
        answers: The same answers.

    Returns:
        ``None`` if nothing is marked, or no token has a score.
    """
    is_known = np.isfinite(scores)
    empty, n_marked = np.zeros(0), sum(answer.n_marked for answer in answers)
    size = np.concatenate([empty, *(answer.size for answer in answers)])[is_known]
    marked = np.concatenate([empty, *(answer.marked for answer in answers)])[is_known]
    if not n_marked or not is_known.any():
        return None
    order, last_of_tie = tie_order(scores[is_known])
    f1 = 2 * marked[order].cumsum() / (size[order].cumsum() + n_marked)
    best = last_of_tie[int(np.argmax(f1[last_of_tie]))]
    return float(scores[is_known][order][best])


def _platt(scores: Floats, labels: Ints) -> dict[str, float]:
    """The likeliest logistic curve that does not fall.

    Source:
        Platt 1999: targets ``(n1 + 1) / (n1 + 2)`` and ``1 / (n0 + 2)`` in place of 1 and 0, so
        that no finite sample claims certainty. Here the slope must not be negative, which no
        calibrator of scikit-learn can promise, and scores more than ten standard deviations off
        (of those between the 5th and 95th percentile) count as ten: one answer with a huge
        perplexity would otherwise flatten the whole curve.
    """
    from scipy.optimize import minimize

    lowest, highest = _certainty(labels)
    targets = np.where(labels == 1, highest, lowest)
    clipped = np.clip(scores, *np.quantile(scores, [0.05, 0.95]))
    scale = next((s.std() for s in (clipped, scores) if s.std() > 0), 1.0)
    centre = float(clipped.mean())
    scaled = np.clip((scores - centre) / scale, -_REACH, _REACH)

    def loss(parameters: Float[np.ndarray, "parameter"]) -> tuple[float, Float[np.ndarray, "parameter"]]:
        logits = parameters[0] * scaled + parameters[1]
        value = -(targets * log_expit(logits) + (1 - targets) * log_expit(-logits)).mean()
        error = (expit(logits) - targets) / len(targets)
        return float(value), np.array([error @ scaled, error.sum()])

    start = np.array([0.0, np.log((labels.sum() + 1) / ((1 - labels).sum() + 1))])
    options = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-10}
    bounds = [(0.0, None), (None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    slope, intercept = (float(value) for value in found.x)
    curve = {"slope": slope / float(scale), "centre": centre, "intercept": intercept}
    return {**curve, "reach": _REACH * float(scale)}


def _isotonic(scores: Floats, labels: Ints) -> dict[str, tuple[float, ...]]:
    """The closest curve that does not fall, kept off 0 and 1 as far as Platt's targets are."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(out_of_bounds="clip").fit(scores, labels.astype(np.float64))
    heights = np.clip(fitted.y_thresholds_, *_certainty(labels))
    return {"scores": tuple(fitted.X_thresholds_.tolist()), "probabilities": tuple(heights.tolist())}


def _certainty(labels: Ints) -> tuple[float, float]:
    """The lowest and the highest probability that a finite sample can claim."""
    n_positive, n_negative = int(labels.sum()), int((1 - labels).sum())
    return 1 / (n_negative + 2), (n_positive + 1) / (n_positive + 2)
