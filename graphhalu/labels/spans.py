"""Labels that the data set states: the rules ``given``, ``premise`` and ``spans``, and of tokens."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.labels.labels import Labels, Meaning
from graphhalu.labels.registry import LabelDecision, Labeller, correct, hallucinated, undecided
from graphhalu.labels.run import label_records
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
