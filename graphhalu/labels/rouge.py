"""The rule ``rouge``: an answer is right if it overlaps enough with a gold answer.

A secondary rule: overlap rewards length and wording. Use ``match`` where answers are short.
"""

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from graphhalu.errors import UsageError
from graphhalu.labels.base import LabelDecision, Labeller, correct, hallucinated, undecided
from graphhalu.labels.match import UNSPACED, equals_alias
from graphhalu.labels.normalise import fold
from graphhalu.labels.refusal import is_refusal
from graphhalu.provenance import installed_version
from graphhalu.traces.schema import TraceRecord

_TOKEN: Final = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[^\W_])+")


class UnicodeTokenizer(Tokenizer):
    """Words of letters and digits; one token a character in scripts without spaces.

    On ASCII it equals rouge-score's own tokenizer without stemming, which drops every other
    character: there, equal Japanese texts score 0.
    """

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, in lower case and without accents."""
        return _TOKEN.findall(fold(text))


class RougeL(Labeller):
    """Compares an answer with the gold answers by ROUGE-L.

    An answer is hallucinated if its best F1 with a gold answer is below the threshold. Where the
    data set states incorrect answers (TruthfulQA), the threshold plays no part: the answer is
    hallucinated if its best F1 with an incorrect answer is at least that with a correct one, so
    an answer that resembles neither is hallucinated. An empty answer, and a refusal that is no
    gold answer itself, are not valid.

    Args:
        threshold: F1 from which an answer is correct, above 0 and at most 1.

    Source:
        Lin 2004, ROUGE; Lin et al. 2022, arXiv:2109.07958 (difference of correct and incorrect
        answers, there with ROUGE-1 and as a score). Longest common subsequence of tokens, F1,
        no stemming.
    """

    name: ClassVar[str] = "rouge"

    def __init__(self, threshold: float = 0.3) -> None:
        if not 0 < threshold <= 1:
            message = f"threshold must be above 0 and at most 1, got {threshold}"
            raise UsageError(message)
        self.threshold = float(threshold)
        self._scorer = RougeScorer(["rougeL"], tokenizer=UnicodeTokenizer())

    def settings(self) -> dict[str, Any]:
        """The threshold, the tokenizer and the rule for stated incorrect answers."""
        return {
            "threshold": self.threshold,
            "score": "rougeL F1, best gold answer",
            "tokenizer": "unicode words, single characters in scripts without spaces",
            "incorrect_answers": "hallucinated if best incorrect >= best correct",
            "rouge_score": installed_version("rouge-score"),
            "version": 1,
        }

    def label(self, record: TraceRecord) -> LabelDecision:
        """Decide one answer; see the class."""
        if not record.answers:
            return undecided("no gold answer")
        if not _TOKEN.search(fold(record.answer)):
            return undecided("empty answer")
        if is_refusal(record.answer) and not equals_alias(record.answer, record.answers):
            return undecided("refusal")
        best = self.best_f1(record.answer, record.answers)
        if record.incorrect_answers:
            is_wrong = self.best_f1(record.answer, record.incorrect_answers) >= best
            return (
                hallucinated("closer to an incorrect answer")
                if is_wrong
                else correct("closer to a correct answer")
            )
        is_wrong = best < self.threshold
        return hallucinated("low overlap") if is_wrong else correct("enough overlap")

    def best_f1(self, answer: str, references: Sequence[str]) -> float:
        """Highest ROUGE-L F1 of an answer with one of the references, in [0, 1]."""
        return max(self._scorer.score(text, answer)["rougeL"].fmeasure for text in references)
