"""Control: which token it is, and between which it stands."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, final

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field
from scipy.sparse import csr_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from graphhalu.detectors.base import Detector, DetectorCard, Scores
from graphhalu.detectors.identity import check_identity
from graphhalu.detectors.probes.search import Fold
from graphhalu.detectors.sides import auroc
from graphhalu.detectors.token_samples import (
    Sample,
    context_folds,
    labelled_traces,
    sample_tokens,
)
from graphhalu.detectors.trained import TrainedConfig, TrainedDetector
from graphhalu.labels.labels import Labels
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace

STRENGTHS: Final = (0.01, 0.1, 1.0)
"""scikit-learn's ``C``, from strong to weak."""
OFFSETS: Final = (-2, -1, 0, 1, 2)
"""Tokens that are looked at, from the token itself; beyond the answer there is none."""
_NOTHING: Final = -1


class TokenTextConfig(TrainedConfig):
    """Settings of the text control."""

    n_folds: Annotated[int, Field(ge=2)] = 3
    """Folds within the training side in which the penalty is chosen."""
    max_tokens: Annotated[int, Field(ge=10)] = 12_000
    """Tokens that are learnt from at most, hallucinated ones up to half of them."""
    min_count: Annotated[int, Field(ge=1)] = 3
    """A token at an offset is known if it stands there so often among those learnt from."""


@final
class TokenText(TrainedDetector):
    """Logistic regression on the identity of a token and of its two neighbours on each side."""

    config_class: ClassVar[type[TrainedConfig]] = TokenTextConfig
    config: TokenTextConfig
    card: ClassVar[DetectorCard] = DetectorCard(
        name="token-text",
        summary="logistic regression on which token it is and which stand beside it",
        source=(
            "Control: one column a token and offset from -2 to 2 that is known from the training "
            "side. The penalty is chosen in three folds by context; classes are balanced."
        ),
        inputs=("text",),
        is_supervised=True,
        level="token",
        is_control=True,
    )

    def __init__(self, seed: int | None = None, config: TrainedConfig | None = None) -> None:
        super().__init__(seed, config)
        self.known: Int[np.ndarray, "term 2"] | None = None
        self.weight: Float[np.ndarray, "term"] = np.zeros(0)
        self.bias = 0.0

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Choose and fit on the labelled tokens of ``split.train``; validation takes no part."""
        chosen = labelled_traces(labels, split.train, self.card.name)
        tokens, config = labels.token_labels(self.card.name), self.config
        sample = sample_tokens(tokens, chosen, n_most=config.max_tokens, seed=config.seed)
        values = sample.labels
        pairs = zip(sample.traces, sample.tokens, strict=True)
        ids = np.concatenate([neighbours(traces[index])[places] for index, places in pairs])
        self.known = _known_terms(ids, config.min_count)
        terms = _columns(ids, self.known)
        folds = self._folds(traces, labels, sample)
        aurocs = [_inner_auroc(terms, values, folds, strength) for strength in STRENGTHS]
        strength = STRENGTHS[int(np.argmax(aurocs))]
        self.weight, self.bias = _regression(terms, values, strength)
        self.training_report = {
            "n_traces": len(chosen), "n_tokens": len(values), "n_terms": len(self.known),
            "strength": strength, "inner_auroc": max(aurocs) if folds else None,
        }  # fmt: skip
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Logit of each answer token; one of unknown tokens only has that of the bias."""
        if self.known is None:
            raise self.unfitted()
        check_identity(self.identity, traces)
        known = self.known
        return Scores.ragged(
            [_columns(neighbours(trace), known) @ self.weight + self.bias for trace in traces]
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The known tokens and their weights."""
        if self.known is None:
            raise self.unfitted()
        return {"known": self.known, "weight": self.weight, "bias": np.array([self.bias])}

    def restore(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Take over the tokens and weights of a saved control."""
        self.known, self.weight = arrays["known"], arrays["weight"]
        self.bias = float(arrays["bias"][0])
        if self.known.shape != (len(self.weight), 2):
            message = f"{len(self.weight)} weights for {self.known.shape} terms"
            raise ValueError(message)

    def _folds(self, traces: Sequence[Trace], labels: Labels, sample: Sample) -> list[Fold]:
        """Folds of the sampled tokens by context in which both parts hold both classes."""
        owner, values = sample.owner(), sample.labels
        folds = context_folds(
            traces, labels, sample, n_folds=self.config.n_folds, seed=self.config.seed
        )
        found = [Fold(*(np.flatnonzero(np.isin(owner, part)) for part in fold)) for fold in folds]
        return [fold for fold in found if all(len(np.unique(values[part])) > 1 for part in fold)]


def neighbours(trace: Trace) -> Int[np.ndarray, "token offset"]:
    """Vocabulary index of each answer token and of those beside it; -1 beyond the answer."""
    ids = trace.token_ids[trace.prompt_length :].astype(np.int64)
    reach = max(OFFSETS)
    padded = np.pad(ids, reach, constant_values=_NOTHING)
    return np.stack([padded[reach + at : reach + at + len(ids)] for at in OFFSETS], axis=1)


def _known_terms(ids: Int[np.ndarray, "token offset"], min_count: int) -> Int[np.ndarray, "term 2"]:
    """Offset (its place) and vocabulary index of every term that is there often enough."""
    found = []
    for place in range(ids.shape[1]):
        values, counts = np.unique(ids[:, place], return_counts=True)
        kept = values[counts >= min_count]
        found.append(np.stack([np.full(len(kept), place), kept], axis=1))
    return np.concatenate(found).astype(np.int64)


def _columns(ids: Int[np.ndarray, "token offset"], known: Int[np.ndarray, "term 2"]) -> csr_matrix:
    """One column a known term, 1 where it stands."""
    rows, columns = [], []
    for place in range(ids.shape[1]):
        first = int(np.searchsorted(known[:, 0], place))
        terms = known[first : int(np.searchsorted(known[:, 0], place, side="right")), 1]
        at = np.searchsorted(terms, ids[:, place])
        is_known = (at < len(terms)) & (np.append(terms, _NOTHING - 1)[at] == ids[:, place])
        rows.append(np.flatnonzero(is_known))
        columns.append(first + at[is_known])
    row, column = np.concatenate(rows), np.concatenate(columns)
    return csr_matrix((np.ones(len(row)), (row, column)), shape=(len(ids), len(known)))


def _regression(
    terms: csr_matrix, labels: Int[np.ndarray, "token"], strength: float
) -> tuple[Float[np.ndarray, "term"], float]:
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=300, tol=1e-3)
    with warnings.catch_warnings():
        # a weight that is a little off ranks as well
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(terms, labels)
    return model.coef_[0].astype(np.float64), float(model.intercept_[0])


def _inner_auroc(
    terms: csr_matrix, labels: Int[np.ndarray, "token"], folds: Sequence[Any], strength: float
) -> float:
    aurocs = []
    for train, held_out in folds:
        weight, _ = _regression(terms[train], labels[train], strength)
        aurocs.append(auroc(terms[held_out] @ weight, labels[held_out]))
    return float(np.mean(aurocs)) if aurocs else 0.5
