"""The rule ``choice``: the model chooses the letter that it finds likeliest."""

import re
from typing import Any, ClassVar, Final

import numpy as np

from graphhalu.core.errors import UsageError
from graphhalu.datasets.question import LETTERS
from graphhalu.labels.normalise import normalise
from graphhalu.labels.registry import LabelDecision, Labeller, correct, hallucinated, undecided
from graphhalu.traces.schema import TraceRecord

_LETTER: Final = re.compile(
    r"\s*(?:(?:the )?(?:correct )?(?:answer|option|choice)(?: is)?\s*:?\s*)?"
    r"[(\[*\"']*([A-Za-z])(?=[)\]*\"'.,:;]|\s*$|\s+[-\u2013\u2014])",
    re.IGNORECASE,
)


class LetterChoice(Labeller):
    """Compares the likeliest letter with the right one.

    The likeliest letter is the one with the largest log-probability as the first token of the
    answer, summed over its spellings of one token (``A``, `` A``). What the answer says plays no
    part: a model may think long before its letter. A tie between the best letters is not valid.

    Args:
        read_answer: Whether the letter is read from the answer where a trace has no letter
            probabilities: ``B``, ``(B)``, ``B.``, ``Answer: B``, or the text of one option.
            Without it such a trace is not valid.

    Source:
        Hendrycks et al. 2021, arXiv:2009.03300 (likeliest letter). There only one spelling
        counts.
    """

    name: ClassVar[str] = "choice"

    def __init__(self, *, read_answer: bool | str = False) -> None:
        if read_answer not in (True, False):
            raise UsageError(f"read_answer must be true or false, got {read_answer!r}")
        self.read_answer = bool(read_answer)

    def settings(self) -> dict[str, Any]:
        """Whether answers are read, and the rule."""
        return {"rule": "likeliest letter", "read_answer": self.read_answer, "version": 1}

    def label(self, record: TraceRecord) -> LabelDecision:
        """Decide one answer; see the class."""
        fault = _fault(record)
        if fault:
            return undecided(fault)
        if record.choice_logprobs:
            return _likeliest(record)
        if not self.read_answer:
            return undecided("no letter probabilities")
        place = read_letter(record.answer, record.choices)
        return undecided("no letter in the answer") if place is None else _verdict(record, place)


def read_letter(answer: str, choices: tuple[str, ...]) -> int | None:
    """Place of the option that an answer names by its letter or its text, or ``None``.

    The letter must stand first, alone or before a sign of punctuation; ``A dog`` names nothing.
    """
    texts = [place for place, text in enumerate(choices) if normalise(text) == normalise(answer)]
    if len(texts) == 1:
        return texts[0]
    found = _LETTER.match(answer)
    if found is None:
        return None
    place = LETTERS.index(found[1].upper())
    return place if place < len(choices) else None


def _fault(record: TraceRecord) -> str | None:
    """Why the rule cannot apply to a trace."""
    if not record.choices:
        return "no choices"
    if not record.correct_choices:
        return "no right choice stated"
    if not record.is_on_policy:
        return "a given answer"
    if record.choice_logprobs and len(record.choice_logprobs) != len(record.choices):
        return "letters and choices differ in number"
    return None


def _likeliest(record: TraceRecord) -> LabelDecision:
    logprobs = np.array(record.choice_logprobs)
    if np.isnan(logprobs).any() or np.isneginf(logprobs).all() or np.isposinf(logprobs).any():
        return undecided("letter probabilities are no numbers")
    best = np.flatnonzero(logprobs == logprobs.max())
    return undecided("tied letters") if len(best) > 1 else _verdict(record, int(best[0]))


def _verdict(record: TraceRecord, place: int) -> LabelDecision:
    is_right = place in record.correct_choices
    return correct("right choice") if is_right else hallucinated("wrong choice")
