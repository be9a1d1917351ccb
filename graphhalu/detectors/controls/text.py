"""Control: what the words of an answer give away."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, final

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from graphhalu.config import validate
from graphhalu.detectors.base import Detector, DetectorCard, Scores
from graphhalu.detectors.identity import check_identity
from graphhalu.detectors.probes.base import ProbeConfig
from graphhalu.detectors.probes.search import folds_of
from graphhalu.detectors.saved import (
    damaged,
    read_arrays,
    read_description,
    required,
    write_arrays,
    write_description,
)
from graphhalu.detectors.sides import ChosenTraces, check_classes
from graphhalu.errors import NotEnoughDataError, UsageError
from graphhalu.labels.groups import question_groups
from graphhalu.labels.labels import Labels
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace

STRENGTHS: Final = (0.1, 1.0, 10.0, 100.0)
"""scikit-learn's ``C``; the weakest model first."""
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
class TfidfText(Detector):
    """Logistic regression on words and characters of the answer; it sees nothing else.

    Args:
        seed: By default that of the configuration.
        config: Settings.

    Summary:
        logistic regression on TF-IDF of the answer's words and characters

    Source:
        Control of the sinktda study (2026). Words and pairs of words, two to four characters within
        words; rows of unit length. The penalty is chosen in three grouped folds within the training
        side, classes are balanced; the vocabulary is that of the training side. With
        text=question+answer it reads the question too.
    """

    card: ClassVar[DetectorCard] = DetectorCard.of(__doc__, "tfidf", "text", is_control=True)

    def __init__(self, seed: int | None = None, config: TextConfig | None = None) -> None:
        config = config or TextConfig()
        self.config = config if seed is None else config.model_copy(update={"seed": seed})
        self.vectorisers: dict[str, TfidfVectorizer] = {}
        self.weight: Float[np.ndarray, "term"] | None = None
        self.bias = 0.0
        self.training_report: dict[str, Any] = {}

    @classmethod
    def settings(cls, **values: Any) -> dict[str, Any]:
        """Arguments of the constructor from plain values.

        Raises:
            ConfigError: If a field is unknown or a value does not validate.
        """
        config = validate(TextConfig, values, source=f"settings of {cls.card.name}")
        return {"seed": config.seed, "config": config}

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
        aurocs = [_inner_auroc(terms, values, folds, strength) for strength in STRENGTHS]
        strength = STRENGTHS[int(np.argmax(aurocs))]
        model = _regression(strength).fit(terms, values)
        self.weight, self.bias = model.coef_[0].astype(np.float64), float(model.intercept_[0])
        self.training_report = {
            "n_train": len(used), "n_terms": terms.shape[1], "strength": strength,
            "inner_auroc": max(aurocs) if folds else None,
        }  # fmt: skip
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

    def save(self, folder: Path) -> None:
        """Write weights and inverse frequencies, and the vocabulary as JSON."""
        arrays = {f"idf_{kind}": v.idf_ for kind, v in self.vectorisers.items()}
        arrays |= {"weight": self._fitted(), "bias": np.array([self.bias])}
        vocabulary = {
            kind: sorted(v.vocabulary_, key=v.vocabulary_.__getitem__)
            for kind, v in self.vectorisers.items()
        }
        write_arrays(folder, arrays)
        values = {
            "config": self.config.model_dump(mode="json"), "vocabulary": vocabulary,
            "training": self.training_report,
        }  # fmt: skip
        write_description(folder, self.card.name, values)

    @classmethod
    def load(cls, folder: Path) -> Detector:
        """Read what :meth:`save` wrote."""
        values = read_description(folder, cls.card.name)
        config, vocabulary = (required(values, key, folder) for key in ("config", "vocabulary"))
        arrays = read_arrays(folder)
        try:
            detector = cls(**cls.settings(**config))
            for kind, terms in vocabulary.items():
                detector.vectorisers[kind] = _vectoriser(kind, vocabulary=terms)
                detector.vectorisers[kind].idf_ = arrays[f"idf_{kind}"]
            detector.weight, detector.bias = arrays["weight"], float(arrays["bias"][0])
            _check_sizes(vocabulary, detector.weight)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(folder, error) from None
        detector.training_report = dict(values.get("training") or {})
        return detector

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
            message = f"{self.card.name} is not fitted: call fit first, or load a saved one"
            raise UsageError(message)
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


def _regression(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)


def _inner_auroc(
    terms: csr_matrix, labels: Int[np.ndarray, "trace"], folds: Sequence[Any], strength: float
) -> float:
    if not folds:
        return 0.5
    model = _regression(strength)
    return cross_val_score(model, terms, labels, cv=folds, scoring="roc_auc").mean()


def _check_sizes(
    vocabulary: Mapping[str, Sequence[str]], weight: Float[np.ndarray, "term"]
) -> None:
    n_terms = sum(len(terms) for terms in vocabulary.values())
    if len(weight) != n_terms:
        message = f"{len(weight)} weights for {n_terms} terms"
        raise ValueError(message)
