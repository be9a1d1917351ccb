"""From scores to probabilities, and the threshold of a call: both from the validation side.

The rule: isotonic regression where each class has 200 validation traces or more, since it fits
any rising curve and needs many points for that; Platt's logistic curve below. Both never fall,
so a score is never flipped and no order is turned round.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import model_validator
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from sklearn.isotonic import IsotonicRegression

from graphhalu.core.config import Config, validate
from graphhalu.core.files import read_json_object
from graphhalu.evaluation.weighted_metrics import check_scores, roc_counts

ISOTONIC_MINIMUM: Final = 200
"""Validation traces of the rarer class from which on isotonic regression is taken."""

_REACH: Final = 10.0

Method = Literal["platt", "isotonic"]


class Calibration(Config):
    """Turns scores of one fitted detector into probabilities and calls."""

    method: Method
    """Which of the two curves."""
    threshold: float
    """Scores at or above it are called hallucinated; by default that of the best F1."""
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

    @model_validator(mode="after")
    def _is_a_curve(self) -> "Calibration":
        points = len(self.scores), len(self.probabilities)
        if points[0] != points[1] or (self.method == "isotonic" and not points[0]):
            message = f"{points[0]} scores with {points[1]} probabilities"
            raise ValueError(message)
        if any(list(points) != sorted(points) for points in (self.scores, self.probabilities)):
            message = "a curve that falls"
            raise ValueError(message)
        return self

    @classmethod
    def fit(
        cls,
        scores: Float[np.ndarray, "trace"],
        labels: Int[np.ndarray, "trace"],
        *,
        method: Method | None = None,
        threshold: float | None = None,
    ) -> "Calibration":
        """Fit on traces, or tokens, that the detector was not trained on.

        Args:
            scores: Scores of one fitted detector; finite, higher means more likely hallucinated.
            labels: 1 = hallucinated, 0 = correct.
            method: The curve; by default the rule of this module decides.
            threshold: From which on scores are called hallucinated; by default that of the best
                F1 of these traces.

        Raises:
            ValueError: If a score is not finite, or a label is neither 0 nor 1.
            NotEnoughDataError: If one class is missing.
        """
        check_scores(scores, labels)
        n_hallucinated = int(labels.sum())
        rarer = min(n_hallucinated, len(labels) - n_hallucinated)
        chosen = method or ("isotonic" if rarer >= ISOTONIC_MINIMUM else "platt")
        curve = _isotonic(scores, labels) if chosen == "isotonic" else _platt(scores, labels)
        head: dict[str, Any] = {
            "method": chosen,
            "threshold": best_f1_threshold(scores, labels) if threshold is None else threshold,
            "n_hallucinated": n_hallucinated,
            "n_correct": len(labels) - n_hallucinated,
        }
        return cls(**head, **curve)

    def probability(self, scores: Float[np.ndarray, "trace"]) -> Float[np.ndarray, "trace"]:
        """Probability of being hallucinated, as common as on the validation side; NaN of NaN."""
        if self.method == "isotonic":
            return np.interp(scores, self.scores, self.probabilities)
        distance = np.clip(scores - self.centre, -self.reach, self.reach)
        return expit(self.slope * distance + self.intercept)

    def calls(self, scores: Float[np.ndarray, "trace"]) -> Bool[np.ndarray, "trace"]:
        """Which scores are called hallucinated; NaN is not."""
        return scores >= self.threshold

    def to_json(self) -> dict[str, Any]:
        """Plain values that :meth:`from_json` reads."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Calibration":
        """What :meth:`to_json` gave.

        Raises:
            ConfigError: If a field is missing, unknown or of another type.
        """
        return validate(cls, values, source="a saved calibration")


def read_calibration(path: Path) -> Calibration | None:
    """The calibration that lies beside a saved detector, or ``None`` if there is none.

    Raises:
        DataFileError: If the file cannot be read.
        ConfigError: If a field is missing, unknown or of another type.
    """
    try:
        return Calibration.from_json(read_json_object(path, way_out="Train the detector again"))
    except FileNotFoundError:
        return None


def best_f1_threshold(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> float:
    """The score at or above which calling hallucinated gives the best F1; the highest of equals.

    Where nine of ten answers are hallucinated this may well be the lowest score: to call every
    answer so then has the best F1.

    Raises:
        ValueError: If a score is not finite, or a label is neither 0 nor 1.
        NotEnoughDataError: If one class is missing.
    """
    check_scores(scores, labels)
    counts = roc_counts(scores, labels)
    hits, alarms = counts.true_positives[0], counts.false_positives[0]
    best = int(np.argmax(hits / (hits[-1] + hits + alarms)))
    return float(np.unique(scores)[::-1][best])


def _platt(scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]) -> dict[str, float]:
    """The likeliest logistic curve that does not fall.

    Source:
        Platt 1999: targets ``(n1 + 1) / (n1 + 2)`` and ``1 / (n0 + 2)`` in place of 1 and 0, so
        that no finite sample claims certainty. Here the slope must not be negative, and scores
        more than ten standard deviations off (of those between the 5th and 95th percentile)
        count as ten: one answer with a huge perplexity would otherwise flatten the whole curve.
    """
    n_positive, n_negative = int(labels.sum()), int((1 - labels).sum())
    targets = np.where(labels == 1, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    clipped = np.clip(scores, *np.quantile(scores, [0.05, 0.95]))
    scale = next((s.std() for s in (clipped, scores) if s.std() > 0), 1.0)
    centre = float(clipped.mean())
    scaled = np.clip((scores - centre) / scale, -_REACH, _REACH)

    def loss(parameters: Float[np.ndarray, "parameter"]) -> tuple[float, Float[np.ndarray, "parameter"]]:
        logits = parameters[0] * scaled + parameters[1]
        value = -(targets * log_expit(logits) + (1 - targets) * log_expit(-logits)).mean()
        error = (expit(logits) - targets) / len(targets)
        return float(value), np.array([error @ scaled, error.sum()])

    start = np.array([0.0, np.log((n_positive + 1) / (n_negative + 1))])
    options = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-10}
    bounds = [(0.0, None), (None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    slope, intercept = (float(value) for value in found.x)
    curve = {"slope": slope / float(scale), "centre": centre, "intercept": intercept}
    return {**curve, "reach": _REACH * float(scale)}


def _isotonic(
    scores: Float[np.ndarray, "trace"], labels: Int[np.ndarray, "trace"]
) -> dict[str, tuple[float, ...]]:
    """The closest curve that does not fall, kept off 0 and 1 as far as Platt's targets are."""
    fitted = IsotonicRegression(out_of_bounds="clip").fit(scores, labels.astype(np.float64))
    n_positive, n_negative = int(labels.sum()), int((1 - labels).sum())
    heights = np.clip(fitted.y_thresholds_, 1 / (n_negative + 2), (n_positive + 1) / (n_positive + 2))
    return {"scores": tuple(fitted.X_thresholds_.tolist()), "probabilities": tuple(heights.tolist())}
