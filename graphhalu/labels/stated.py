"""Labels without a comparison of texts: the chosen letter, and what the data set states.

The rules are ``choice``, and ``given``, ``premise`` and ``spans``, which speak of the model's input;
the spans label the tokens of an answer too.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
from jaxtyping import Bool, Int

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.datasets.question import LETTERS
from graphhalu.labels.labels import Labels, Meaning
from graphhalu.labels.match import normalise
from graphhalu.labels.registry import LabelDecision, Labeller, correct, hallucinated, undecided
from graphhalu.labels.run import label_records
from graphhalu.traces.schema import TraceRecord

OWN_ANSWER: Final = "the model's own answer"
"""Reason of every label about given answers for a trace of the model's own."""

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
        n_letters = len(record.choice_logprobs or ())
        faults = {
            "no choices": not record.choices,
            "no right choice stated": not record.correct_choices,
            "a given answer": not record.is_on_policy,
            "letters and choices differ in number": n_letters not in (0, len(record.choices)),
            "no letter probabilities": not (n_letters or self.read_answer),
        }
        fault = next((reason for reason, is_there in faults.items() if is_there), None)
        if fault:
            return undecided(fault)
        logprobs, choices = record.choice_logprobs, record.choices
        place = likeliest(logprobs) if n_letters else read_letter(record.answer, choices)
        if place is None:
            return undecided("no letter in the answer")
        if isinstance(place, str):
            return undecided(place)
        return correct("right choice") if place in record.correct_choices else hallucinated("wrong choice")


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


def likeliest(letter_logprobs: Sequence[float]) -> int | str:
    """Place of the likeliest letter, or why there is none."""
    logprobs = np.array(letter_logprobs)
    if np.isnan(logprobs).any() or np.isneginf(logprobs).all() or np.isposinf(logprobs).any():
        return "letter probabilities are not numbers"
    best = np.flatnonzero(logprobs == logprobs.max())
    return "tied letters" if len(best) > 1 else int(best[0])


def _given(record: TraceRecord) -> LabelDecision:
    """Takes over the label of a replayed answer; the model's own answers have none.

    The label speaks of the input: the model read the answer, and did not write it.
    """
    if record.is_on_policy:
        return undecided(OWN_ANSWER)
    if record.given_label is None:
        return undecided("no label given")
    return hallucinated("given as wrong") if record.given_label else correct("given as right")


def _premise(record: TraceRecord) -> LabelDecision:
    """Takes over whether a question misleads, as one with a false premise does.

    The label speaks of the input: a model may well answer such a question rightly.
    """
    if record.input_label is None:
        return undecided("the data set does not say")
    return hallucinated("question misleads") if record.input_label else correct("question is sound")


def _spans(record: TraceRecord) -> LabelDecision:
    """An answer that the data set marks anywhere is hallucinated.

    An answer without a mark is correct only if the data set calls it so: one that is called
    wrong as a whole, or not at all, was not marked and is not valid. The label speaks of the
    input, since the model read the answer.
    """
    if record.is_on_policy:
        return undecided(OWN_ANSWER)
    if record.given_spans:
        is_lost = bool(record.answer_offsets) and n_lost_spans(record) > 0
        return hallucinated("span without a token" if is_lost else "hallucinated span")
    if record.given_label is None:
        return undecided("no label given")
    return undecided("wrong without spans") if record.given_label else correct("no span")


def stated_labeller(name_: str, rule: str, decide: Callable[[TraceRecord], LabelDecision]) -> type[Labeller]:
    """The labeller that takes over what the data set says; the rule has no choices."""

    class Stated(Labeller):
        name: ClassVar[str] = name_
        meaning: ClassVar[Meaning] = "input"

        def settings(self) -> dict[str, Any]:
            return {"rule": rule, "version": 1}

        def label(self, record: TraceRecord) -> LabelDecision:
            return decide(record)

    Stated.__name__ = Stated.__qualname__ = name_
    Stated.__doc__ = decide.__doc__
    return Stated


GivenLabel = stated_labeller("given", "label of the given answer", _given)
PremiseLabel = stated_labeller("premise", "label of the question", _premise)
SpanLabel = stated_labeller("spans", "any hallucinated span", _spans)


def label_tokens(records: Sequence[TraceRecord]) -> Labels:
    """Label the answer tokens of all traces by the rule ``spans``, and with them the answers.

    A token is hallucinated if it shares a character with a marked span. An answer that is called
    wrong as a whole and has no span is not valid: the data set does not say where.

    Raises:
        NotEnoughDataError: If the tokens of no trace can be labelled; says why not.
    """
    has_offsets = np.array([len(r.answer_offsets) == r.length - r.prompt_length for r in records])
    labels = label_records(records, SpanLabel()).without(~has_offsets, "no character offsets")
    if not labels.is_valid.any():
        raise NotEnoughDataError(
            f"the tokens of none of {len(records)} answers can be labelled ({labels.reasons[0]}): "
            f"expected given answers with marked spans\n"
            f"  Extract some:  graphhalu extract --dataset ragtruth --answers given"
        )
    tokens = tuple(
        token_labels(record) if is_valid else np.zeros(record.length - record.prompt_length, dtype=np.int64)
        for record, is_valid in zip(records, labels.is_valid, strict=True)
    )
    return replace(labels, values=np.array([each.any() for each in tokens], dtype=np.int64), tokens=tokens)


def token_labels(record: TraceRecord) -> Int[np.ndarray, "token"]:
    """Label of each answer token: 1 if it shares a character with a hallucinated span.

    Raises:
        UsageError: If the trace has no character offsets of its answer tokens.
    """
    return np.any(_overlaps(record), axis=1).astype(np.int64)


def n_lost_spans(record: TraceRecord) -> int:
    """How many hallucinated spans share no character with any answer token.

    Such a span lies behind the cut of a long answer, or is empty.

    Raises:
        UsageError: If the trace has no character offsets of its answer tokens.
    """
    return int((~np.any(_overlaps(record), axis=0)).sum())


def _overlaps(record: TraceRecord) -> Bool[np.ndarray, "token span"]:
    """Which token shares a character with which span; both are half-open ranges."""
    if not record.answer_offsets:
        raise UsageError(
            f"trace {record.trace_id!r} has no character offsets of its answer tokens, and the "
            f"labels of tokens come from them\n  Extract it again:  graphhalu extract"
        )
    tokens = np.array(record.answer_offsets, dtype=np.int64)
    spans = np.array(record.given_spans, dtype=np.int64).reshape(-1, 2)
    starts = np.maximum(tokens[:, None, 0], spans[None, :, 0])
    stops = np.minimum(tokens[:, None, 1], spans[None, :, 1])
    shared: Bool[np.ndarray, "token span"] = starts < stops
    return shared
