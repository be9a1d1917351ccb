"""A text cut into pieces of about a sentence, so that a long one fits into one matrix."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Integer

MOST_PIECES: Final = 32
"""About as many pieces as a text is cut into; each named span ends one more."""

_ENDS: Final = (".", "!", "?", ";", ":", "\n", "。", "！", "？")  # noqa: RUF001


def piece_starts(
    texts: Sequence[str], span_code: Integer[np.ndarray, "token"], most: int = MOST_PIECES
) -> tuple[int, ...]:
    """First token of each piece.

    A piece ends where a named span ends, and at the first end of a sentence after ``n / most``
    tokens, or at twice as many where no sentence ends.

    Args:
        texts: Text of each token.
        span_code: Named span of each token.
        most: About how many pieces.
    """
    size = -(-len(texts) // most)
    starts = [0]
    for place in range(1, len(texts)):
        n_tokens = place - starts[-1]
        is_sentence_end = n_tokens >= size and _ends(texts[place - 1], texts[place])
        is_span_end = span_code[place] != span_code[place - 1]
        if is_span_end or is_sentence_end or n_tokens >= 2 * max(size, 8):
            starts.append(place)
    return tuple(starts)


def _ends(text: str, following: str) -> bool:
    """Whether a sentence ends between two tokens; white space may stand before the second."""
    has_gap = following[:1].isspace()
    return text.rstrip(" ").endswith(_ENDS) or (has_gap and "\n" in following)
