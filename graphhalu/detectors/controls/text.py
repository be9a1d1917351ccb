"""Controls: what the words of an answer, and which token it is, give away."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, final

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field
from scipy.sparse import csr_matrix, hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.splits import Split
from graphhalu.detectors.base import Detector, DetectorCard, Scores
from graphhalu.detectors.identity import check_identity
from graphhalu.detectors.probes.base import ProbeConfig
from graphhalu.detectors.probes.search import Fold, folds_of
from graphhalu.detectors.sides import ChosenTraces, auroc, check_classes
from graphhalu.detectors.token_samples import Sample, TokenConfig, training_sample
from graphhalu.detectors.trained import TrainedConfig, TrainedDetector
from graphhalu.labels.groups import question_groups
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace

STRENGTHS: Final = (0.1, 1.0, 10.0, 100.0)
"""scikit-learn's ``C`` for answers; the weakest model first."""
TOKEN_STRENGTHS: Final = (0.01, 0.1, 1.0)
"""The same for tokens."""
OFFSETS: Final = (-2, -1, 0, 1, 2)
"""Tokens that are looked at, from the token itself; beyond the answer there is none."""
_NOTHING: Final = -1
_STRIDE: Final = 2**32
"""More than any index in a vocabulary: one number holds a place and an index."""
ANALYSERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "word": {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"},
    "character": {"analyzer": "char_wb", "ngram_range": (2, 4)},
}
MAX_TERMS: Final = 20_000
"""Most frequent terms kept of each kind."""


class TextConfig(ProbeConfig):
    """Settings of the text control."""

    text: Literal["answer", "question+answer"] = "answer"
    """What is read."""
    min_traces: Annotated[int, Field(ge=1)] = 2
    """Training traces that must have a term."""


@final
class TfidfText(TrainedDetector):
    """Logistic regression on words and characters of the answer; it sees nothing else."""

    config_class: ClassVar[type[TrainedConfig]] = TextConfig
    saved_fields: ClassVar[tuple[str, ...]] = ("vocabulary",)
    config: TextConfig
    card: ClassVar[DetectorCard] = DetectorCard(
        name="tfidf",
        summary="logistic regression on TF-IDF of the answer's words and characters",
        source=(
            "Control of the sinktda study (2026). Words and pairs of words, two to four "
            "characters within words; rows of unit length. The penalty is chosen in three grouped "
            "folds within the training side, classes are balanced; the vocabulary is that of the "
            "training side. With text=question+answer it reads the question too."
        ),
        inputs=("text",),
        is_supervised=True,
        is_control=True,
    )

    def __init__(self, seed: int | None = None, config: TrainedConfig | None = None) -> None:
        super().__init__(seed, config)
        self.vectorisers: dict[str, TfidfVectorizer] = {}
        self.weight: Float[np.ndarray, "term"] | None = None
        self.bias = 0.0

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Choose and fit on the valid labels of ``split.train``; validation takes no part."""
        chosen = ChosenTraces.labelled(traces, labels, split.train)
        texts = [self._text(trace) for trace in chosen]
        used = np.flatnonzero([bool(text) for text in texts])
        values = labels.values[np.array(chosen.indices, dtype=np.int64)[used]]
        check_classes(values, self.card.name, n_without=len(texts) - len(used))
        self.vectorisers = _fitted_vectorisers([texts[p] for p in used], self.config.min_traces)
        terms = self._terms([texts[place] for place in used])
        groups = question_groups([chosen[int(place)] for place in used])
        folds = folds_of(values, groups, n_folds=self.config.n_folds, seed=self.config.seed)
        found = _fitted_regression(terms, values, folds, STRENGTHS, max_iter=2000)
        self.weight, self.bias = found.weight, found.bias
        self.training_report = {
            "n_train": len(used),
            "n_terms": terms.shape[1],
            "strength": found.strength,
            "inner_auroc": found.inner_auroc,
        }
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Logit of each trace with an answer."""
        weight = self._fitted()
        check_identity(self.identity, traces)
        texts = [self._text(trace) for trace in traces]
        if not texts:
            return Scores.of(np.zeros(0))
        # a sparse product adds up each row by itself
        logits = self._terms(texts) @ weight + self.bias
        return Scores.of(np.where([bool(text) for text in texts], logits, np.nan))

    def arrays(self) -> dict[str, np.ndarray]:
        """Weights and inverse frequencies."""
        arrays = {f"idf_{kind}": v.idf_ for kind, v in self.vectorisers.items()}
        return arrays | {"weight": self._fitted(), "bias": np.array([self.bias])}

    def description(self) -> dict[str, Any]:
        """The vocabulary."""
        vocabulary = {
            kind: sorted(v.vocabulary_, key=v.vocabulary_.__getitem__) for kind, v in self.vectorisers.items()
        }
        return {"vocabulary": vocabulary}

    def restore(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Take over vocabulary and weights of a saved control."""
        vocabulary = values["vocabulary"]
        for kind, terms in vocabulary.items():
            self.vectorisers[kind] = _vectoriser(kind, vocabulary=terms)
            self.vectorisers[kind].idf_ = arrays[f"idf_{kind}"]
        self.weight, self.bias = arrays["weight"], float(arrays["bias"][0])
        _check_size(self.weight, sum(len(terms) for terms in vocabulary.values()))

    def _text(self, trace: Trace) -> str:
        """What is read of a trace; empty if it has no answer."""
        answer = trace.record.answer.strip()
        if answer and self.config.text == "question+answer":
            return f"{trace.record.question}\n{answer}"
        return answer

    def _terms(self, texts: Sequence[str]) -> csr_matrix:
        return csr_matrix(hstack([v.transform(texts) for v in self.vectorisers.values()]))

    def _fitted(self) -> Float[np.ndarray, "term"]:
        if self.weight is None:
            raise self.unfitted()
        return self.weight


def _vectoriser(kind: str, **settings: Any) -> TfidfVectorizer:
    return TfidfVectorizer(**ANALYSERS[kind], sublinear_tf=True, dtype=np.float64, **settings)


def _fitted_vectorisers(texts: Sequence[str], min_traces: int) -> dict[str, TfidfVectorizer]:
    """Those of both kinds that find a term."""
    found = {}
    for kind in ANALYSERS:
        vectoriser = _vectoriser(kind, min_df=min_traces, max_features=MAX_TERMS)
        try:
            found[kind] = vectoriser.fit(texts)
        except ValueError:  # scikit-learn's word for an empty vocabulary
            continue
    if not found:
        message = f"no term is in {min_traces} of the {len(texts)} training answers"
        raise NotEnoughDataError(message)
    return found


class TokenTextConfig(TokenConfig):
    """Settings of the text control of tokens; the penalty is chosen in folds."""

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
        sample, folds = training_sample(traces, labels, split.train, self.config, self.card.name)
        pairs = zip(sample.traces, sample.tokens, strict=True)
        ids = np.concatenate([neighbours(traces[index])[places] for index, places in pairs])
        self.known = _known_terms(ids, self.config.min_count)
        terms, folds = _token_terms(ids, self.known), _token_folds(sample, folds)
        with warnings.catch_warnings():
            # a weight that is a little off ranks as well
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = _fitted_regression(terms, sample.labels, folds, TOKEN_STRENGTHS, max_iter=300, tol=1e-3)
        self.weight, self.bias = found.weight, found.bias
        self.training_report = {
            "n_traces": len(sample.traces),
            "n_tokens": len(ids),
            "n_terms": len(self.known),
            "strength": found.strength,
            "inner_auroc": found.inner_auroc,
        }
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Logit of each answer token; one of unknown tokens only has that of the bias."""
        if self.known is None:
            raise self.unfitted()
        check_identity(self.identity, traces)
        found = [_token_terms(neighbours(trace), self.known) for trace in traces]
        return Scores.ragged([terms @ self.weight + self.bias for terms in found])

    def arrays(self) -> dict[str, np.ndarray]:
        """The known tokens and their weights."""
        if self.known is None:
            raise self.unfitted()
        return {"known": self.known, "weight": self.weight, "bias": np.array([self.bias])}

    def restore(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Take over the tokens and weights of a saved control."""
        self.known, self.weight = arrays["known"], arrays["weight"]
        self.bias = float(arrays["bias"][0])
        _check_size(self.weight, len(self.known))


def _token_folds(sample: Sample, folds: Sequence[Fold]) -> list[Fold]:
    """Folds of the sampled tokens in which both parts hold both classes."""
    owner, values = sample.owner(), sample.labels
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
    codes, counts = np.unique(_codes(np.arange(ids.shape[1]), ids), return_counts=True)
    place, index = np.divmod(codes[counts >= min_count] - _NOTHING, _STRIDE)
    return np.stack([place, index + _NOTHING], axis=1)


def _token_terms(ids: Int[np.ndarray, "token offset"], known: Int[np.ndarray, "term 2"]) -> csr_matrix:
    """One column a known term, 1 where it stands."""
    terms = _codes(known[:, 0], known[:, 1])
    codes = _codes(np.arange(ids.shape[1]), ids)
    column = np.searchsorted(terms, codes)
    is_known = np.append(terms, _STRIDE * len(OFFSETS))[column] == codes
    values = np.ones(int(is_known.sum()))
    places = (np.nonzero(is_known)[0], column[is_known])
    return csr_matrix((values, places), shape=(len(ids), len(known)))


def _codes(place: Int[np.ndarray, "_"], index: Int[np.ndarray, "*term"]) -> Int[np.ndarray, "*term"]:
    """One number for a place and an index in the vocabulary, in the order of both."""
    return place * _STRIDE + index


class _Regression(NamedTuple):
    """A logistic regression, and how its penalty was chosen."""

    weight: Float[np.ndarray, "term"]
    bias: float
    strength: float
    inner_auroc: float | None


def _fitted_regression(
    terms: csr_matrix,
    labels: Int[np.ndarray, "item"],
    folds: Sequence[Fold],
    strengths: Sequence[float],
    **settings: Any,
) -> _Regression:
    """The penalty with the best mean AUROC over the folds, the first without folds."""

    def model(strength: float, chosen: Any = slice(None)) -> LogisticRegression:
        made = LogisticRegression(C=strength, class_weight="balanced", **settings)
        return made.fit(terms[chosen], labels[chosen])

    def inner_auroc(strength: float) -> float:
        found = [
            auroc(model(strength, train).decision_function(terms[held_out]), labels[held_out])
            for train, held_out in folds
        ]
        return float(np.mean(found)) if found else 0.5

    aurocs = [inner_auroc(strength) for strength in strengths]
    best = int(np.argmax(aurocs))
    whole = model(strengths[best])
    weight, bias = whole.coef_[0].astype(np.float64), float(whole.intercept_[0])
    return _Regression(weight, bias, strengths[best], aurocs[best] if folds else None)


def _check_size(weight: Float[np.ndarray, "term"], n_terms: int) -> None:
    if len(weight) != n_terms:
        message = f"{len(weight)} weights for {n_terms} terms"
        raise ValueError(message)
