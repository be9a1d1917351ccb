"""Conventions of axes, rows, edges, labels and scores.

Attention is ``attention[layer, head, query, key]``: float, causal, every row sums to 1.
Hidden states are ``hidden[layer + 1, token, feature]``: index 0 holds the embeddings, the last
entry is taken after the final norm. Row ``i`` predicts token ``i + 1``. An edge of a token graph
runs from the attended key to the attending query. Label 1 means hallucinated, and a score is
higher when hallucination is more likely.
"""

from enum import IntEnum
from typing import Final, NamedTuple

LABEL_CORRECT: Final = 0
LABEL_HALLUCINATED: Final = 1

ROW_CONVENTION: Final = "row i predicts token i + 1"
EDGE_CONVENTION: Final = "edge_index[0] = attended key, edge_index[1] = attending query"

ROW_SUM_TOLERANCE: Final = 1e-4
"""How far a float32 attention row may be from 1."""


class Span(IntEnum):
    """Named spans; together they partition the tokens of a sequence."""

    BOS = 0
    SYSTEM = 1
    CONTEXT = 2
    QUESTION = 3
    TEMPLATE = 4
    ANSWER = 5


SPAN_NAMES: Final[tuple[str, ...]] = tuple(span.name.lower() for span in Span)
N_SPANS: Final = len(SPAN_NAMES)


class RowRange(NamedTuple):
    """Half-open range of query rows."""

    start: int
    stop: int


def answer_producing_rows(prompt_length: int, length: int) -> RowRange:
    """Rows whose output predicts the answer tokens: ``prompt_length - 1 … length - 2``.

    Args:
        prompt_length: Tokens before the answer; at least 1.
        length: Tokens of prompt and answer; more than ``prompt_length``.

    Raises:
        ValueError: If there is no prompt token or no answer token.
    """
    if not 1 <= prompt_length < length:
        raise ValueError(
            f"expected at least one prompt token and one answer token, "
            f"got prompt_length={prompt_length} and length={length}"
        )
    return RowRange(prompt_length - 1, length - 1)
