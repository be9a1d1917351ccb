"""Token detectors whose scores are smoothed along the answer: labels of neighbours are mostly equal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from graphhalu.core.errors import UsageError
from graphhalu.core.splits import InnerFold, Split
from graphhalu.detectors.base import Detector, Scores, check_classes
from graphhalu.detectors.inner_search import folds_of
from graphhalu.detectors.saved import TrainedConfig, TrainedDetector
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.traces.trace import Trace

STAYS: Final = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Probabilities of a hallucinated token after a hallucinated one that are tried, beside the share of
hallucinated tokens, at which neighbours say nothing."""
_SURE: Final = 30.0
"""Largest logit: beyond it a probability is 0 or 1 in rounding."""


def persistent_logits(
    evidence: Sequence[Float[np.ndarray, "_"]], *, p_stay: float, prior: float
) -> list[Float[np.ndarray, "_"]]:
    """Logit of each token being hallucinated, given the evidence of all tokens of its answer.

    Args:
        evidence: Log-likelihood ratio (nat) of hallucinated against not, of each token of each answer.
        p_stay: Probability of a hallucinated token after a hallucinated one.
        prior: Share of hallucinated tokens, in (0, 1); also that of the first token.

    Source:
        Forward-backward algorithm of a chain of two states (Rabiner 1989). The probability of a
        hallucinated token after another is the one at which the prior is kept along the answer, at most 1/2.
    """
    lengths = np.array([len(each) for each in evidence], dtype=np.int64)
    if not lengths.sum():
        return [each.astype(np.float64) for each in evidence]
    ratio = np.zeros((len(evidence), int(lengths.max())))
    for row, each in zip(ratio, evidence, strict=True):
        row[: len(each)] = np.clip(each, -_SURE, _SURE)
    likelihood = np.stack([expit(-ratio), expit(ratio)], axis=-1)
    p_start = min((1 - p_stay) * prior / (1 - prior), 0.5)
    step = np.array([[1 - p_start, p_start], [1 - p_stay, p_stay]])
    n_tokens = ratio.shape[1]
    forward, backward = np.empty_like(likelihood), np.ones_like(likelihood)
    # sums of two and no matrix products, which round differently for other numbers of answers
    state = np.broadcast_to([1 - prior, prior], likelihood[:, 0].shape)
    for token in range(n_tokens):
        before = state if token == 0 else (state[:, :, None] * step).sum(axis=1)
        state = before * likelihood[:, token]
        state = forward[:, token] = state / state.sum(axis=1, keepdims=True)
    for token in range(n_tokens - 2, -1, -1):
        ahead = backward[:, token + 1] * likelihood[:, token + 1]
        state = (ahead[:, None, :] * step).sum(axis=2)
        is_last = token >= lengths[:, None] - 1
        backward[:, token] = np.where(is_last, 1.0, state / state.sum(axis=1, keepdims=True))
    posterior = forward * backward
    logits = np.log(posterior[..., 1]) - np.log(posterior[..., 0])
    return [row[:length] for row, length in zip(logits, lengths.tolist(), strict=True)]


class SmoothedConfig(TrainedConfig):
    """Settings of a smoothed token detector."""

    base: str = ""
    """Token detector whose scores are smoothed; by default that of the card."""
    settings: Mapping[str, Any] = {}
    """What differs from the defaults of that detector."""
    n_folds: Annotated[int, Field(ge=2)] = 3
    """Folds of the training side; the first one's held-out part chooses the smoothing."""


class SmoothedDetector(TrainedDetector):
    """Another token detector with its scores smoothed along each answer.

    A part of the training side that the other detector has not seen turns its scores into evidence
    (logistic curve) and chooses how much neighbours count, by average precision. Then it is trained
    on the whole side. A token without a score is evidence of neither, and has no score either.
    """

    config_class: ClassVar[type[TrainedConfig]] = SmoothedConfig
    saved_fields: ClassVar[tuple[str, ...]] = ("config", "smoothing")
    base: ClassVar[str]
    """The detector that is smoothed by default."""

    config: SmoothedConfig

    inner: Detector | None = None
    smoothing: dict[str, float] | None = None

    @property
    def n_parameters(self) -> int | None:
        """Those of the other detector, and four more."""
        known = None if self.inner is None else self.inner.n_parameters
        return None if known is None else known + 4

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Train on the labelled tokens of ``split.train``; validation takes no part."""
        chosen = np.sort(split.train[labels.is_valid[split.train]])
        tokens = labels.token_labels(self.card.name)
        check_classes(labels.items[labels.places(chosen)], self.card)
        groups = question_groups([traces[index] for index in chosen.tolist()])
        folds = folds_of(labels.values[chosen], groups, n_folds=self.config.n_folds, seed=self.config.seed)
        empty = split.validation[:0]

        def fitted(side: Int[np.ndarray, "side"]) -> Detector:
            return self._base().fit(traces, labels, Split(side, empty, empty))

        self.smoothing, inner_precision = {"slope": 1.0, "centre": 0.0, "p_stay": 0.5, "prior": 0.5}, None
        for fold in (InnerFold(*(chosen[part] for part in each)) for each in folds[:1]):
            held_out = [traces[index] for index in fold.held_out.tolist()]
            scores = fitted(fold.train).score(held_out).by_trace()
            truth = [tokens[index] for index in fold.held_out.tolist()]
            self.smoothing, inner_precision = _chosen(scores, truth, self.smoothing)
        self.inner = fitted(chosen)
        report = getattr(self.inner, "training_report", {})
        self.training_report = {**report, **self.smoothing, "inner_precision": inner_precision}
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Smoothed logit of each answer token."""
        inner, smoothing = self.fitted(self.inner, traces), self.fitted(self.smoothing)
        return Scores.ragged(_smoothed(inner.score(traces).by_trace(), **smoothing))

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the other detector into a folder of its own."""
        smoothing = self.fitted(self.smoothing)
        (folder / "base").mkdir(exist_ok=True)
        self.fitted(self.inner).save(folder / "base")
        return {"smoothing": smoothing}

    def restore(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Take over the other detector and the smoothing."""
        names = ("slope", "centre", "p_stay", "prior")
        self.smoothing = {name: float(values["smoothing"][name]) for name in names}
        self.inner = type(self._base()).load(folder / "base")

    def _base(self) -> Detector:
        """The detector that is smoothed, not fitted.

        Raises:
            UnknownNameError: If no detector has the name.
            UsageError: If it scores answers, or is smoothed itself.
        """
        from graphhalu.detectors.registry import DETECTORS

        kind: Any = DETECTORS.get(self.config.base or type(self).base)
        if kind.card.level != "token" or issubclass(kind, SmoothedDetector):
            raise UsageError(
                f"{self.card.name} smooths scores of tokens, and {kind.card.name} gives others\n"
                f"  Name a token detector:  graphhalu show detectors"
            )
        return kind(**kind.settings(**{**self.config.settings, "seed": self.config.seed}))


def _chosen(
    scores: Sequence[Float[np.ndarray, "_"]], labels: Sequence[Int[np.ndarray, "_"]], plain: dict[str, float]
) -> tuple[dict[str, float], float | None]:
    """Curve of the evidence and the best smoothing on held-out answers, with its average precision."""
    values, truth = np.concatenate(scores), np.concatenate(labels)
    is_known = np.isfinite(values)
    if len(np.unique(truth[is_known])) < 2:  # noqa: PLR2004
        return plain, None
    curve = LogisticRegression(C=1e6).fit(values[is_known, None], truth[is_known])
    slope, prior = float(curve.coef_[0, 0]), float(truth[is_known].mean())
    centre = (float(logit(prior)) - float(curve.intercept_[0])) / slope if slope else 0.0
    found: list[tuple[float, dict[str, float]]] = []
    for p_stay in (prior, *(each for each in STAYS if each > prior)):
        smoothing = {"slope": slope, "centre": centre, "p_stay": p_stay, "prior": prior}
        smoothed = np.concatenate(_smoothed(scores, **smoothing))[is_known]
        found.append((float(average_precision_score(truth[is_known], smoothed)), smoothing))
    best, smoothing = max(found, key=lambda each: each[0])
    return smoothing, best


def _smoothed(
    scores: Sequence[Float[np.ndarray, "_"]], *, slope: float, centre: float, p_stay: float, prior: float
) -> list[Float[np.ndarray, "_"]]:
    """Smoothed logits of scores; NaN where there is no score."""
    evidence = [np.nan_to_num(slope * (each - centre)) for each in scores]
    logits = persistent_logits(evidence, p_stay=p_stay, prior=prior)
    return [np.where(np.isfinite(each), found, np.nan) for each, found in zip(scores, logits, strict=True)]


TokenSmoothed: Final = SmoothedDetector.variant("token-smoothed")
TokenHiddenSmoothed: Final = SmoothedDetector.variant("token-hidden-smoothed")
TokenOverlapSmoothed: Final = SmoothedDetector.variant("token-overlap-smoothed")
