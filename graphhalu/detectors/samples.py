"""Agreement of the sampled answers of a question, with each other and with the answer itself.

Answers mean the same where they claim the same words: content words that the question does not hold,
after the normal form of the rule ``match``. No other model is asked.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from rouge_score.rouge_scorer import RougeScorer
from scipy.special import entr
from scipy.stats import entropy
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from graphhalu.core.splits import Split
from graphhalu.detectors.base import (
    ChosenTraces,
    Detector,
    DetectorCard,
    Scores,
    check_classes,
    sibling_traces,
)
from graphhalu.detectors.inner_search import folds_of
from graphhalu.detectors.saved import TrainedDetector, read_arrays, write_arrays
from graphhalu.detectors.scalars import ScalarDetector
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.labels.match import content_words
from graphhalu.labels.rouge import UnicodeTokenizer
from graphhalu.traces.schema import TraceRecord
from graphhalu.traces.trace import Trace

Measures = Float[np.ndarray, "trace measure"]

LEAST_SAMPLES: Final = 2
"""With fewer samples there is no agreement."""
WAY_OUT: Final = "It compares sampled answers: extract with --samples 10"
_TOKENIZER: Final = UnicodeTokenizer()
_ROUGE: Final = RougeScorer(["rougeL"], tokenizer=_TOKENIZER)
LARGEST_EIGENVALUE: Final = 0.9
"""Eigenvectors of the Laplacian below it tell meanings apart."""
HEAT_TIME: Final = 0.3
SAR_TEMPERATURE: Final = 0.001


class Answers(NamedTuple):
    """An answer and the samples of its question.

    Attributes:
        own: The answer.
        samples: The samples; at least :data:`LEAST_SAMPLES`.
        traces: Their traces, for numbers that read log-probabilities.
    """

    own: TraceRecord
    samples: Sequence[TraceRecord]
    traces: Sequence[Trace] = ()

    @property
    def claims(self) -> list[frozenset[str]]:
        """What each sample claims."""
        return [claimed_words(each) for each in self.samples]


def claimed_words(record: TraceRecord) -> frozenset[str]:
    """Content words of an answer that its question does not hold."""
    return content_words(record.answer) - content_words(record.question)


def likeness(claims: Sequence[frozenset[str]]) -> Float[np.ndarray, "answer answer"]:
    """Share of the words of two answers that both claim (Jaccard); 1 for two that claim nothing."""
    return np.array([[len(a & b) / len(a | b) if a | b else 1.0 for b in claims] for a in claims])


def semantic_entropy(answers: Answers) -> float:
    """Entropy (nat) of the meanings of the samples, each as likely as it is frequent."""
    return float(entropy(list(Counter(answers.claims).values())))


def lexical_dissimilarity(answers: Answers) -> float:
    """One minus the mean ROUGE-L F1 of two samples."""
    texts = [each.answer for each in answers.samples]
    pairs = [(a, b) for place, a in enumerate(texts) for b in texts[:place]]
    return 1 - float(np.mean([_ROUGE.score(a, b)["rougeL"].fmeasure for a, b in pairs]))


def eigenvalue_sum(answers: Answers) -> float:
    """Sum of ``max(0, 1 - eigenvalue)`` of the normalised Laplacian of the samples' likeness.

    It is the number of meanings where samples mean either the same or nothing alike.
    """
    weight = likeness(answers.claims)
    scale = 1 / np.sqrt(weight.sum(axis=1))
    return float(np.maximum(0.0, np.linalg.eigvalsh(scale[:, None] * weight * scale)).sum())


def mean_distance(answers: Answers) -> float:
    """One minus the mean likeness of two samples, each with itself among them."""
    return 1 - float(likeness(answers.claims).mean())


def eccentricity(answers: Answers) -> float:
    """Root of the summed squared distances of the samples from their mean, in leading eigenvectors.

    Those of the normalised Laplacian of the samples' likeness whose eigenvalue is below
    :data:`LARGEST_EIGENVALUE`.
    """
    weight = likeness(answers.claims)
    scale = 1 / np.sqrt(weight.sum(axis=1))
    values, vectors = np.linalg.eigh(np.eye(len(weight)) - scale[:, None] * weight * scale)
    leading = vectors[:, values < LARGEST_EIGENVALUE]
    return float(np.linalg.norm(leading - leading.mean(axis=0)))


def kernel_entropy(answers: Answers) -> float:
    """Von Neumann entropy (nat) of the heat kernel on the graph of the samples' likeness, of unit trace."""
    weight = likeness(answers.claims)
    np.fill_diagonal(weight, 0)
    values, vectors = np.linalg.eigh(np.diag(weight.sum(axis=1)) - weight)
    kernel = (vectors * np.exp(-HEAT_TIME * values)) @ vectors.T
    scale = 1 / np.sqrt(np.diag(kernel))
    spectrum = np.linalg.eigvalsh(scale[:, None] * kernel * scale / len(kernel))
    return float(entr(np.clip(spectrum, 0, None)).sum())


def selfcheck_ngram(answers: Answers) -> float:
    """Mean surprise (nat) of the answer's words under word counts of samples and answer, plus one each."""
    texts = [answers.own, *answers.samples]
    counts = Counter(word for each in texts for word in _TOKENIZER.tokenize(each.answer))
    total = sum(counts.values()) + len(counts)
    surprise = [-np.log((counts[word] + 1) / total) for word in _TOKENIZER.tokenize(answers.own.answer)]
    return float(np.mean(surprise)) if surprise else np.nan


def token_sar(answers: Answers) -> float:
    """Mean over the samples of their tokens' surprise (nat), weighted by relevance."""
    found = []
    for trace in answers.traces:
        surprise = -trace.stream("token_logprob")[trace.prompt_length :]
        relevance = token_relevance(trace.record)
        if len(relevance) != len(surprise):
            return np.nan
        weights = relevance if relevance.sum() > 0 else np.ones_like(relevance)
        found.append(float(weights @ surprise / weights.sum()))
    return float(np.mean(found)) if found else np.nan


def token_relevance(record: TraceRecord) -> Float[np.ndarray, "token"]:
    """One minus the likeness of what question and answer say with and without each token."""
    question, answer = content_words(record.question), record.answer
    said = question | content_words(answer)
    left = [question | content_words(answer[:start] + answer[stop:]) for start, stop in record.answer_offsets]
    return np.array([1 - len(said & each) / len(said | each) if said | each else 0.0 for each in left])


def sentence_sar(answers: Answers) -> float:
    """Mean surprise (nat) of the samples, whose probability others that say the same raise."""
    probability = np.exp([each.beam_score or 0.0 for each in answers.samples])
    weight = likeness(answers.claims)
    np.fill_diagonal(weight, 0)
    return float(-np.log(probability + weight @ probability / SAR_TEMPERATURE).mean())


def share_against(answers: Answers) -> float:
    """Share of the samples that do not claim what the answer does."""
    own = claimed_words(answers.own)
    return float(np.mean([each != own for each in answers.claims]))


def distance_to_answer(answers: Answers) -> float:
    """One minus the mean likeness of a sample and the answer."""
    return 1 - float(likeness([claimed_words(answers.own), *answers.claims])[0, 1:].mean())


MEASURES: Final[Mapping[str, Callable[[Answers], float]]] = {
    "semantic-entropy": semantic_entropy,
    "lexical-similarity": lexical_dissimilarity,
    "eigenvalue-sum": eigenvalue_sum,
    "mean-distance": mean_distance,
    "share-against": share_against,
    "distance-to-answer": distance_to_answer,
    "score-mean": lambda answers: float(np.mean([each.beam_score or 0.0 for each in answers.samples])),
    "score-spread": lambda answers: float(np.std([each.beam_score or 0.0 for each in answers.samples])),
    "length-spread": lambda answers: float(np.std([each.length for each in answers.samples])),
    "eccentricity": eccentricity,
    "kernel-entropy": kernel_entropy,
    "selfcheck-ngram": selfcheck_ngram,
    "token-sar": token_sar,
    "sentence-sar": sentence_sar,
}
"""Numbers of an answer and its samples, by name."""
AGREEMENT: Final = tuple(MEASURES)[:9]
"""Those that the trained detector reads."""


def measured(traces: Sequence[Trace], names: Sequence[str]) -> Measures:
    """Numbers of each trace; NaN where its question has too few samples, or the trace no answer."""
    found = np.full((len(traces), len(names)), np.nan)
    for place, (trace, siblings) in enumerate(zip(traces, sibling_traces(traces), strict=True)):
        own = trace.record
        samples = [each for each in siblings if each.record.is_sample and each.record != own]
        if len(samples) >= LEAST_SAMPLES and own.answer.strip():
            answers = Answers(own, [each.record for each in samples], samples)
            found[place] = [MEASURES[name](answers) for name in names]
    return found


def _of_samples(name: str, measure: str) -> type[ScalarDetector]:
    """A detector by one of :data:`MEASURES`; NaN where a question has too few samples."""
    return ScalarDetector.variant(
        name, __name__, values=lambda traces: measured(traces, (measure,))[:, 0], way_out=WAY_OUT
    )


SemanticEntropy: Final = _of_samples("semantic-entropy", "semantic-entropy")
LexicalSimilarity: Final = _of_samples("lexical-similarity", "lexical-similarity")
Eigv: Final = _of_samples("eigv", "eigenvalue-sum")
Deg: Final = _of_samples("deg", "mean-distance")
Ecc: Final = _of_samples("ecc", "eccentricity")
KernelEntropy: Final = _of_samples("kernel-entropy", "kernel-entropy")
SelfcheckNgram: Final = _of_samples("selfcheck-ngram", "selfcheck-ngram")
TokenSar: Final = _of_samples("token-sar", "token-sar")
SentenceSar: Final = _of_samples("sentence-sar", "sentence-sar")


def has_samples(traces: Sequence[Trace]) -> bool:
    """Whether a question of these traces has samples enough to compare."""
    return any(
        sum(each.record.is_sample for each in siblings) >= LEAST_SAMPLES
        for siblings in sibling_traces(traces)
    )


def fit_agreement(values: Measures, labels: Int[np.ndarray, "trace"]) -> dict[str, np.ndarray]:
    """Weights and bias of a logistic regression on plain values; classes are balanced."""
    regression = LogisticRegression(class_weight="balanced", max_iter=1000)
    scaler, model = make_pipeline(StandardScaler(), regression).fit(values, labels).steps
    weight = model[1].coef_[0] / scaler[1].scale_
    return {"weight": weight, "bias": model[1].intercept_ - weight @ scaler[1].mean_}


def logits(values: Measures, weights: Mapping[str, np.ndarray]) -> Float[np.ndarray, "trace"]:
    """Row by row, so that none depends on the others."""
    found: Float[np.ndarray, "trace"] = (values * weights["weight"]).sum(axis=1) + weights["bias"][0]
    return found


def doubts(traces: Sequence[Trace], name: str) -> Float[np.ndarray, "trace"]:
    """One minus the probability that the model gives its answer, or its mean over the samples.

    Args:
        traces: NaN for those of which nothing was asked.
        name: In :attr:`TraceRecord.asked`.
    """
    said = [t.record.asked.get(name, np.nan) if t.record.answer.strip() else np.nan for t in traces]
    return np.array([1 - float(np.mean(each)) for each in said])


_ASK: Final = "The model must be asked: extract with --ask, and --samples 10 for what supports"
PTrue: Final = ScalarDetector.variant(
    "p-true", __name__, values=lambda traces: doubts(traces, "p_true"), way_out=_ASK
)
SelfcheckPrompt: Final = ScalarDetector.variant(
    "selfcheck-prompt", __name__, values=lambda traces: doubts(traces, "supported"), way_out=_ASK
)


class SampleAgreement(TrainedDetector):
    """Logistic regression on all numbers of :data:`AGREEMENT`, standardised, classes balanced."""

    card: ClassVar[DetectorCard] = DetectorCard.of("sample-agreement")

    weights: dict[str, np.ndarray] | None = None
    out_of_fold: Mapping[int, Float[np.ndarray, "_"]] = {}
    """Logits of each training trace from a fit that never saw its question."""

    @property
    def n_parameters(self) -> int:
        """A weight a number, and the bias."""
        return len(AGREEMENT) + 1

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Fit on the valid labels of ``split.train``; validation takes no part."""
        chosen = ChosenTraces.labelled(traces, labels, split.train)
        values = measured(chosen, AGREEMENT) if len(chosen) else np.zeros((0, len(AGREEMENT)))
        known = np.isfinite(values).all(axis=1)
        values, indices = values[known], np.array(chosen.indices, dtype=np.int64)[known]
        targets = labels.values[indices]
        check_classes(targets, self.card, n_without=int((~known).sum()), way_out=WAY_OUT)
        groups = question_groups([traces[index] for index in indices.tolist()])
        out_of_fold: dict[int, Float[np.ndarray, "_"]] = {}
        for fold in folds_of(targets, groups, n_folds=3, seed=self.config.seed):
            held_out = logits(values[fold.held_out], fit_agreement(values[fold.train], targets[fold.train]))
            out_of_fold |= dict(zip(indices[fold.held_out].tolist(), held_out[:, None], strict=True))
        self.weights, self.out_of_fold = fit_agreement(values, targets), out_of_fold
        self.training_report = {"n_train": len(targets), "n_without_samples": int((~known).sum())}
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Logit of each trace whose question has samples."""
        weights = self.fitted(self.weights, traces)
        return Scores.of(logits(measured(traces, AGREEMENT), weights))

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the weights; name what they belong to."""
        write_arrays(folder, self.fitted(self.weights))
        return {"measures": list(AGREEMENT)}

    def restore(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Take over saved weights of the same numbers."""
        arrays = read_arrays(folder)
        if list(values.get("measures", ())) != list(AGREEMENT) or len(arrays["weight"]) != len(AGREEMENT):
            raise ValueError(f"weights of {values.get('measures')}, expected those of {list(AGREEMENT)}")
        self.weights = {name: arrays[name].astype(np.float64) for name in ("weight", "bias")}
