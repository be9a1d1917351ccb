"""Controls that read text only: the words of an answer, and which token it is."""

import warnings
from abc import ABC
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field
from scipy.sparse import csr_matrix, hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.splits import InnerFold, Split
from graphhalu.detectors.base import ChosenTraces, Detector, DetectorCard, Scores, check_classes
from graphhalu.detectors.inner_search import folds_of, with_both_classes
from graphhalu.detectors.probes import ProbeConfig
from graphhalu.detectors.saved import TrainedConfig, TrainedDetector, read_arrays, write_arrays
from graphhalu.detectors.token_probes import TokenConfig, training_sample
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.traces.trace import Trace

Documents = Sequence[str] | Int[np.ndarray, "token offset"]
OFFSETS: Final = (-2, -1, 0, 1, 2)
"""Tokens that are looked at, from the token itself; beyond the answer there is none."""
_NOTHING: Final = -1
ANALYSERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "word": {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"},
    "character": {"analyzer": "char_wb", "ngram_range": (2, 4)},
}
MAX_TERMS: Final = 20_000
"""Most frequent terms kept of each kind."""


class TextDetector(TrainedDetector, ABC):
    """Logistic regression on which terms there are; classes are balanced."""

    strengths: ClassVar[tuple[float, ...]]
    """scikit-learn's ``C``, the weakest model first."""
    regression: ClassVar[Mapping[str, Any]]
    """Settings of the solver."""

    vectorisers: Mapping[str, CountVectorizer] = {}
    weight: Float[np.ndarray, "term"] | None = None
    bias: float = 0.0

    def learn(
        self, documents: Documents, labels: Int[np.ndarray, "item"], folds: Sequence[InnerFold]
    ) -> dict[str, Any]:
        """Choose the penalty by the mean AUROC over the folds, the strongest without folds; fit."""
        terms = self.terms(documents)
        settings = {"class_weight": "balanced", **self.regression}
        if folds:
            chosen = {"scoring": "roc_auc", "l1_ratios": (0,), "use_legacy_attributes": False}
            model = LogisticRegressionCV(Cs=self.strengths, cv=folds, **chosen, **settings).fit(terms, labels)
            strength, inner_auroc = float(model.C_), float(model.scores_.mean(axis=0).max())
        else:
            strength, inner_auroc = self.strengths[0], None
            model = LogisticRegression(C=strength, **settings).fit(terms, labels)
        self.weight, self.bias = model.coef_[0].astype(np.float64), float(model.intercept_[0])
        return {"n_terms": terms.shape[1], "strength": strength, "inner_auroc": inner_auroc}

    def terms(self, documents: Documents) -> csr_matrix:
        """The terms of each document."""
        return csr_matrix(hstack([each.transform(documents) for each in self.vectorisers.values()]))

    def logits(self, documents: Documents) -> Float[np.ndarray, "item"]:
        """One logit a document; a sparse product adds up each row by itself."""
        return self.terms(documents) @ self.fitted(self.weight) + self.bias

    def fit_vectorisers(self, found: Mapping[str, CountVectorizer], documents: Documents) -> None:
        """Learn the vocabularies; keep those that are not empty.

        Raises:
            NotEnoughDataError: If all are empty.
        """
        fitted: dict[str, CountVectorizer] = {}
        for kind, vectoriser in found.items():
            with suppress(ValueError):  # scikit-learn's word for an empty vocabulary
                fitted[kind] = vectoriser.fit(documents)
        self.vectorisers = fitted
        if not fitted:
            n_least = next(iter(found.values())).min_df
            raise NotEnoughDataError(
                f"no term is in {n_least} of the {len(documents)} training {self.card.level}s"
            )

    def weights(self) -> dict[str, np.ndarray]:
        """Weights and bias as arrays."""
        return {"weight": self.fitted(self.weight), "bias": np.array([self.bias])}

    def restore_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over weights that fit the vocabularies.

        Raises:
            ValueError: If they do not.
        """
        self.weight, self.bias = arrays["weight"], float(arrays["bias"][0])
        n_terms = sum(len(each.vocabulary) for each in self.vectorisers.values())
        if len(self.weight) != n_terms:
            raise ValueError(f"{len(self.weight)} weights for {n_terms} terms")


class TextConfig(ProbeConfig):
    """Settings of the text control."""

    text: Literal["answer", "question+answer"] = "answer"
    """What is read."""
    min_traces: Annotated[int, Field(ge=1)] = 2
    """Training traces that must have a term."""


class Tfidf(TextDetector):
    """Logistic regression on words and characters of the answer; it sees nothing else."""

    card: ClassVar[DetectorCard] = DetectorCard.of("tfidf")
    config_class: ClassVar[type[TrainedConfig]] = TextConfig
    saved_fields: ClassVar[tuple[str, ...]] = ("config", "vocabulary")
    strengths: ClassVar[tuple[float, ...]] = (0.1, 1.0, 10.0, 100.0)
    regression: ClassVar[Mapping[str, Any]] = {"max_iter": 2000}
    config: TextConfig

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Choose and fit on the valid labels of ``split.train``; validation takes no part."""
        chosen = ChosenTraces.labelled(traces, labels, split.train)
        texts = [self._text(trace) for trace in chosen]
        used = np.flatnonzero([bool(text) for text in texts])
        values = labels.values[np.array(chosen.indices, dtype=np.int64)[used]]
        check_classes(values, self.card, n_without=len(texts) - len(used))
        documents = [texts[place] for place in used]
        limits = {"min_df": self.config.min_traces, "max_features": MAX_TERMS}
        self.fit_vectorisers({kind: _vectoriser(kind, **limits) for kind in ANALYSERS}, documents)
        groups = question_groups([chosen[int(place)] for place in used])
        folds = folds_of(values, groups, n_folds=self.config.n_folds, seed=self.config.seed)
        self.training_report = {"n_train": len(used), **self.learn(documents, values, folds)}
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Logit of each trace with an answer."""
        self.fitted(self.weight, traces)
        texts = [self._text(trace) for trace in traces]
        logits = self.logits(texts) if texts else np.zeros(0)
        return Scores.of(np.where([bool(text) for text in texts], logits, np.nan))

    def write(self, folder: Path) -> dict[str, Any]:
        """Write weights and inverse frequencies; describe the vocabulary."""
        write_arrays(folder, {f"idf_{kind}": v.idf_ for kind, v in self.vectorisers.items()} | self.weights())
        return {"vocabulary": {kind: list(v.get_feature_names_out()) for kind, v in self.vectorisers.items()}}

    def restore(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Take over vocabulary and weights of a saved control."""
        arrays, vocabulary = read_arrays(folder), values["vocabulary"]
        self.vectorisers = {kind: _vectoriser(kind, vocabulary=terms) for kind, terms in vocabulary.items()}
        for kind, vectoriser in self.vectorisers.items():
            vectoriser.idf_ = arrays[f"idf_{kind}"]
        self.restore_weights(arrays)

    def _text(self, trace: Trace) -> str:
        """What is read of a trace; empty if it has no answer."""
        answer = trace.record.answer.strip()
        if answer and self.config.text == "question+answer":
            return f"{trace.record.question}\n{answer}"
        return answer


def _vectoriser(kind: str, **settings: Any) -> TfidfVectorizer:
    return TfidfVectorizer(**ANALYSERS[kind], sublinear_tf=True, dtype=np.float64, **settings)


class TokenTextConfig(TokenConfig):
    """Settings of the text control of tokens; the penalty is chosen in folds."""

    min_count: Annotated[int, Field(ge=1)] = 3
    """A token at an offset is known if it is there so often among those learnt from."""


class TokenText(TextDetector):
    """Logistic regression on the identity of a token and of its two neighbours on each side."""

    card: ClassVar[DetectorCard] = DetectorCard.of("token-text")
    config_class: ClassVar[type[TrainedConfig]] = TokenTextConfig
    strengths: ClassVar[tuple[float, ...]] = (0.01, 0.1, 1.0)
    regression: ClassVar[Mapping[str, Any]] = {"max_iter": 300, "tol": 1e-3}
    config: TokenTextConfig

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Choose and fit on the labelled tokens of ``split.train``; validation takes no part."""
        sample, folds = training_sample(traces, labels, split.train, self.config, self.card)
        pairs = zip(sample.traces, sample.tokens, strict=True)
        rows = np.concatenate([neighbours(traces[index])[places] for index, places in pairs])
        self.fit_vectorisers({"token": _token_vectoriser(min_df=self.config.min_count)}, rows)
        with warnings.catch_warnings():
            # a weight that is a little off ranks as well
            warnings.simplefilter("ignore", ConvergenceWarning)
            report = self.learn(rows, sample.labels, with_both_classes(folds, sample.labels))
        self.training_report = {"n_traces": len(sample.traces), "n_tokens": len(rows), **report}
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Logit of each answer token; one of unknown tokens only has that of the bias."""
        self.fitted(self.weight, traces)
        return Scores.ragged([self.logits(neighbours(trace)) for trace in traces])

    def write(self, folder: Path) -> dict[str, Any]:
        """Write place and vocabulary index of the known tokens, and their weights."""
        weights, terms = self.weights(), self.vectorisers["token"].get_feature_names_out()
        known = np.array([(place, int(index) + _NOTHING) for place, index in map(str.split, terms)], np.int64)
        write_arrays(folder, {"known": known, **weights})
        return {}

    def restore(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Take over the tokens and weights of a saved control."""
        arrays = read_arrays(folder)
        terms = [_term(place, index) for place, index in arrays["known"].tolist()]
        self.vectorisers = {"token": _token_vectoriser(vocabulary=terms)}
        self.restore_weights(arrays)


def neighbours(trace: Trace) -> Int[np.ndarray, "token offset"]:
    """Vocabulary index of each answer token and of those beside it; -1 beyond the answer."""
    ids = trace.token_ids[trace.prompt_length :].astype(np.int64)
    reach = max(OFFSETS)
    padded = np.pad(ids, reach, constant_values=_NOTHING)
    return np.stack([padded[reach + at : reach + at + len(ids)] for at in OFFSETS], axis=1)


def _token_vectoriser(**settings: Any) -> CountVectorizer:
    """Counts the terms of rows of :func:`neighbours`."""
    return CountVectorizer(analyzer=_terms_of_row, dtype=np.float64, **settings)


def _terms_of_row(row: Int[np.ndarray, "offset"]) -> list[str]:
    return [_term(place, index) for place, index in enumerate(row.tolist())]


def _term(place: int, index: int) -> str:
    """A token at an offset; the order of terms is that of places and indices."""
    return f"{place} {index - _NOTHING:010d}"
