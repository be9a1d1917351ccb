"""Prompt and answer as tokens: what the replay runs on."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Integer


@dataclass(frozen=True)
class TokenSequence:
    """Prompt and answer as tokens.

    Attributes:
        token_ids: Vocabulary indices.
        span_code: Named span of each token.
        prompt_length: Tokens before the answer.
        row_start: First query row to keep; at most the row that predicts the first answer token.
        option_ids: For each option of a multiple choice, the tokens that stand for it.
    """

    token_ids: Int[np.ndarray, "token"]
    span_code: Integer[np.ndarray, "token"]
    prompt_length: int
    row_start: int = 0
    option_ids: tuple[tuple[int, ...], ...] = ()

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.token_ids)
