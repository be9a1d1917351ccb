"""The rule ``spans``: an answer with a hallucinated span is hallucinated; and its tokens."""

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int

from graphhalu.errors import UsageError
from graphhalu.labels.base import LabelDecision, Labeller, correct, hallucinated, undecided
from graphhalu.labels.given import OWN_ANSWER
from graphhalu.labels.labels import Meaning
from graphhalu.traces.schema import TraceRecord


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
        message = (
            f"trace {record.trace_id!r} has no character offsets of its answer tokens, and the "
            f"labels of tokens come from them\n  Extract it again:  graphhalu extract"
        )
        raise UsageError(message)
    tokens = np.array(record.answer_offsets, dtype=np.int64)
    spans = np.array(record.given_spans, dtype=np.int64).reshape(-1, 2)
    starts = np.maximum(tokens[:, None, 0], spans[None, :, 0])
    stops = np.minimum(tokens[:, None, 1], spans[None, :, 1])
    shared: Bool[np.ndarray, "token span"] = starts < stops
    return shared
