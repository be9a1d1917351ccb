"""Rules that take over what the data set states: ``given``, ``premise`` and ``spans``."""

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int

from graphhalu.core.errors import UsageError
from graphhalu.labels.labels import Meaning
from graphhalu.labels.registry import LabelDecision, Labeller, correct, hallucinated, undecided
from graphhalu.traces.schema import TraceRecord

OWN_ANSWER = "the model's own answer"
"""Reason of every label about given answers for a trace of the model's own."""


class GivenLabel(Labeller):
    """Takes over the label of a replayed answer; the model's own answers have none.

    The label speaks of the input: the model read the answer, and did not write it.
    """

    name: ClassVar[str] = "given"
    meaning: ClassVar[Meaning] = "input"

    def settings(self) -> dict[str, Any]:
        """The rule has no choices."""
        return {"rule": "label of the given answer", "version": 1}

    def label(self, record: TraceRecord) -> LabelDecision:
        """Decide one answer; see the class."""
        if record.is_on_policy:
            return undecided(OWN_ANSWER)
        if record.given_label is None:
            return undecided("no label given")
        return hallucinated("given as wrong") if record.given_label else correct("given as right")


class PremiseLabel(Labeller):
    """Takes over whether a question misleads, as one with a false premise does.

    The label speaks of the input: a model may well answer such a question rightly.
    """

    name: ClassVar[str] = "premise"
    meaning: ClassVar[Meaning] = "input"

    def settings(self) -> dict[str, Any]:
        """The rule has no choices."""
        return {"rule": "label of the question", "version": 1}

    def label(self, record: TraceRecord) -> LabelDecision:
        """Decide one question; see the class."""
        if record.input_label is None:
            return undecided("the data set does not say")
        misleads = bool(record.input_label)
        return hallucinated("question misleads") if misleads else correct("question is sound")


class SpanLabel(Labeller):
    """An answer that the data set marks anywhere is hallucinated.

    An answer without a mark is correct only if the data set calls it so: one that is called
    wrong as a whole, or not at all, was not marked and is not valid. The label speaks of the
    input, since the model read the answer.
    """

    name: ClassVar[str] = "spans"
    meaning: ClassVar[Meaning] = "input"

    def settings(self) -> dict[str, Any]:
        """The rule has no choices."""
        return {"rule": "any hallucinated span", "version": 1}

    def label(self, record: TraceRecord) -> LabelDecision:
        """Decide one answer; see the class."""
        if record.is_on_policy:
            return undecided(OWN_ANSWER)
        if record.given_spans:
            is_lost = bool(record.answer_offsets) and n_lost_spans(record) > 0
            return hallucinated("span without a token" if is_lost else "hallucinated span")
        if record.given_label is None:
            return undecided("no label given")
        return undecided("wrong without spans") if record.given_label else correct("no span")


def token_labels(record: TraceRecord) -> Int[np.ndarray, "token"]:
    """Label of each answer token: 1 if it shares a character with a hallucinated span.

    Raises:
        UsageError: If the trace has no character offsets of its answer tokens.
    """
    labels: Int[np.ndarray, "token"] = np.any(_overlaps(record), axis=1).astype(np.int64)
    return labels


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
