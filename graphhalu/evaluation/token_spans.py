"""Called tokens as characters and spans, against the spans that people marked.

White space counts nowhere: tokenizers put it before a word and people mark around it. Every other
character belongs to the first token that covers it, so characters add up over tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.evaluation.weighted_metrics import tie_order
from graphhalu.traces.schema import TraceRecord

SPAN_RULE: Final = (
    "a marked span is found if called tokens cover at least half of its characters; a called span "
    "(tokens running) is right if at least half of its characters are marked"
)
"""What the metrics of spans mean; the half is :data:`HALF`."""
HALF: Final = 0.5
_NONE: Final = -1


@dataclass(frozen=True)
class MarkedAnswer:
    """Characters of an answer, token by token, and its marked spans.

    Attributes:
        size: Characters of each token.
        marked: Of them those in a marked span.
        spans: Of them those in each span.
        span_size: Characters of each span, also those that no token covers.
        n_marked: Characters in any span, also those that no token covers.
    """

    size: Int[np.ndarray, "token"]
    marked: Int[np.ndarray, "token"]
    spans: Int[np.ndarray, "span token"]
    span_size: Int[np.ndarray, "span"]
    n_marked: int


class SpanCounts(NamedTuple):
    """What called tokens of one answer, or of many together, come to.

    Attributes:
        right: Called characters that are marked.
        called: Called characters.
        marked: Marked characters.
        right_spans: Called spans that are right.
        called_spans: Called spans.
        found_spans: Marked spans that are found.
        marked_spans: Marked spans.
    """

    right: int
    called: int
    marked: int
    right_spans: int
    called_spans: int
    found_spans: int
    marked_spans: int


def marked_answer(record: TraceRecord) -> MarkedAnswer:
    """The characters of a given answer."""
    text = record.answer
    owner = np.full(len(text), _NONE)
    for place in reversed(range(len(record.answer_offsets))):
        start, stop = record.answer_offsets[place]
        owner[start:stop] = place
    is_text = np.array([not character.isspace() for character in text], dtype=np.bool_)
    spans = np.zeros((len(record.given_spans), len(text)), dtype=np.bool_)
    for number, (start, stop) in enumerate(record.given_spans):
        spans[number, start:stop] = is_text[start:stop]
    n_tokens = len(record.answer_offsets)
    is_marked: Bool[np.ndarray, "character"] = spans.sum(axis=0) > 0
    chosen = [is_text, is_marked, *spans]
    of_token = np.array([np.bincount(owner[row & (owner != _NONE)], minlength=n_tokens) for row in chosen])
    return MarkedAnswer(
        size=of_token[0],
        marked=of_token[1],
        spans=of_token[2:],
        span_size=spans.sum(axis=1),
        n_marked=int(is_marked.sum()),
    )


def count_spans(answer: MarkedAnswer, is_predicted_positive: Bool[np.ndarray, "token"]) -> SpanCounts:
    """Characters and spans of one answer; see :data:`SPAN_RULE`.

    Tokens of white space alone neither make a span nor part one.
    """
    of_token = np.flatnonzero(answer.size > 0)
    called = is_predicted_positive[of_token]
    starts = np.flatnonzero(np.diff(np.append(False, called).astype(np.int8)) == 1)
    stops = np.flatnonzero(np.diff(np.append(called, False).astype(np.int8)) == -1) + 1
    size = np.append(0, answer.size[of_token].cumsum())
    marked = np.append(0, answer.marked[of_token].cumsum())
    is_right = marked[stops] - marked[starts] >= HALF * (size[stops] - size[starts])
    covered = answer.spans[:, is_predicted_positive].sum(axis=1)
    is_found = (covered >= HALF * answer.span_size) & (answer.span_size > 0)
    return SpanCounts(
        right=int(answer.marked[is_predicted_positive].sum()),
        called=int(answer.size[is_predicted_positive].sum()),
        marked=answer.n_marked,
        right_spans=int(is_right.sum()),
        called_spans=len(starts),
        found_spans=int(is_found.sum()),
        marked_spans=len(answer.span_size),
    )


def best_threshold(scores: Float[np.ndarray, "token"], answers: Sequence[MarkedAnswer]) -> float | None:
    """The score from which to call tokens so that the F1 of characters is highest.

    Args:
        scores: Of the tokens of all answers, answer after answer; tokens without a score are
            never called.
        answers: The same answers.

    Returns:
        ``None`` if nothing is marked, or no token has a score.
    """
    is_known = np.isfinite(scores)
    size = np.concatenate([np.zeros(0), *(answer.size for answer in answers)])[is_known]
    marked = np.concatenate([np.zeros(0), *(answer.marked for answer in answers)])[is_known]
    n_marked = sum(answer.n_marked for answer in answers)
    if not n_marked or not is_known.any():
        return None
    order, last_of_tie = tie_order(scores[is_known])
    f1 = 2 * marked[order].cumsum() / (size[order].cumsum() + n_marked)
    best = last_of_tie[int(np.argmax(f1[last_of_tie]))]
    return float(scores[is_known][order][best])
