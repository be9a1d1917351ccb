"""The rule ``rouge``: an answer is right if it overlaps enough with a gold answer.

A secondary rule: overlap rewards length and wording. Use ``match`` where answers are short.
"""

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
from jaxtyping import Bool, Float
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from graphhalu.core.errors import UsageError
from graphhalu.core.provenance import installed_version
from graphhalu.core.registry import unknown_name
from graphhalu.labels.match import UNSPACED, fold, unjudgeable
from graphhalu.labels.registry import LabelDecision, Labeller, correct, hallucinated, undecided
from graphhalu.traces.schema import TraceRecord

_METRICS: Final = {
    "rougeL_f1": ("rougeL", "fmeasure", 0.3, "rougeL F1, best gold answer"),
    "rouge1_recall": ("rouge1", "recall", 0.7, "rouge1 recall, best gold answer"),
}
"""Name and field of each metric in rouge-score, its default threshold, and its description."""

_TOKEN: Final = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[^\W_])+")


class UnicodeTokenizer(Tokenizer):
    """Words of letters and digits; one token a character in scripts without spaces.

    On ASCII it equals rouge-score's own tokenizer without stemming, which drops every other
    character: there, equal Japanese texts score 0.
    """

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, in lower case and without accents."""
        return _TOKEN.findall(fold(text))


class RougeOverlap(Labeller):
    """Compares an answer with the gold answers by ROUGE.

    An answer is hallucinated if its best score with a gold answer is below the threshold. Where
    the data set states incorrect answers (TruthfulQA), the threshold plays no part: the answer
    is hallucinated if its best score with an incorrect answer is at least that with a correct
    one, so an answer that resembles neither is hallucinated. An empty answer, and a refusal that
    is not a gold answer itself, are not valid.

    ROUGE-L F1 punishes a sentence for every word beside the gold answer. ROUGE-1 recall does
    not, and gives an answer for free that lists everything.

    Args:
        metric: ``rougeL_f1`` (longest common subsequence of tokens) or ``rouge1_recall`` (share
            of the gold answer's tokens that the answer holds).
        threshold: Score from which an answer is correct, above 0 and at most 1; by default 0.3
            for ROUGE-L F1, and 0.7 for ROUGE-1 recall: a gold answer of up to three tokens must
            then be there whole.

    Source:
        Lin 2004, ROUGE; Lin et al. 2022, arXiv:2109.07958 (difference of correct and incorrect
        answers, there with ROUGE-1 and as a score). No stemming.
    """

    name: ClassVar[str] = "rouge"

    def __init__(self, metric: str = "rougeL_f1", threshold: float | None = None) -> None:
        if metric not in _METRICS:
            raise unknown_name("metric of rouge", metric, _METRICS)
        self._name, self._field, default, self._description = _METRICS[metric]
        threshold = default if threshold is None else threshold
        if not 0 < threshold <= 1:
            raise UsageError(f"threshold must be above 0 and at most 1, got {threshold}")
        self.metric = metric
        self.threshold = float(threshold)
        self._scorer = RougeScorer([self._name], tokenizer=UnicodeTokenizer())

    def settings(self) -> dict[str, Any]:
        """The metric, the threshold, the tokenizer and the rule for stated incorrect answers."""
        return {
            "metric": self.metric,
            "threshold": self.threshold,
            "score": self._description,
            "tokenizer": "unicode words, single characters in scripts without spaces",
            "incorrect_answers": "hallucinated if best incorrect >= best correct",
            "rouge_score": installed_version("rouge-score"),
            "version": 1,
        }

    def label(self, record: TraceRecord) -> LabelDecision:
        """Decide one answer; see the class."""
        fault = _fault(record)
        if fault:
            return undecided(fault)
        best = self.best_score(record.answer, record.answers)
        if not record.incorrect_answers:
            return correct("enough overlap") if best >= self.threshold else hallucinated("low overlap")
        if best > self.best_score(record.answer, record.incorrect_answers):
            return correct("closer to a correct answer")
        return hallucinated("closer to an incorrect answer")

    def best_score(self, answer: str, references: Sequence[str]) -> float:
        """Highest score of an answer with one of the references, in [0, 1]."""
        scores = (self._scorer.score(text, answer)[self._name] for text in references)
        return max(float(getattr(score, self._field)) for score in scores)

    def best_scores(
        self, records: Sequence[TraceRecord]
    ) -> tuple[Float[np.ndarray, "trace"], Bool[np.ndarray, "trace"]]:
        """Best score of every answer with a gold answer, and where a threshold decides by it.

        It does not for an answer that is not valid, and not where incorrect answers are stated;
        the score is NaN there.
        """
        decides = [_fault(record) is None and not record.incorrect_answers for record in records]
        scores = [
            self.best_score(record.answer, record.answers) if is_decided else np.nan
            for record, is_decided in zip(records, decides, strict=True)
        ]
        return np.array(scores, dtype=np.float64), np.array(decides, dtype=np.bool_)


def _fault(record: TraceRecord) -> str | None:
    return unjudgeable(record, is_empty=_TOKEN.search(fold(record.answer)) is None)
