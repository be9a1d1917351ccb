"""What the output distribution says of each next token, computed from a few rows at a time."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from graphhalu.extract.head import DeferredPass
from graphhalu.extract.sequence import TokenSequence

LOGIT_BYTES: Final = 16 * 2**20
"""Logits (float32) that exist at a time, unless they are of fewer than ``LOGIT_ROWS`` rows."""

LOGIT_ROWS: Final = 64
"""Rows of a batch from which a product with the output matrix no longer waits for the matrix."""

_STATISTICS_BYTES: Final = 16 * 2**20
"""Logits that are reduced at a time, so that they stay in the cache."""


class TokenStatistics(NamedTuple):
    """What the output distribution said about each next token."""

    logprob: Float[Tensor, "row"]
    entropy: Float[Tensor, "row"]
    margin: Float[Tensor, "row"]


class Likelihood:
    """Likelihood streams of one sequence; NaN where the row before a token is not kept.

    Args:
        sequence: The tokens.

    Attributes:
        option_logprobs: Log-probability of each option as the first answer token.
    """

    def __init__(self, sequence: TokenSequence) -> None:
        self.sequence = sequence
        self.option_logprobs: tuple[float, ...] = ()
        self._streams = np.full((3, sequence.length), np.nan, dtype=np.float32)

    def rows(self, row_start: int, logits: Float[Tensor, "row vocabulary"]) -> None:
        """Take the logits of rows ``row_start …``."""
        start = max(row_start, self.sequence.row_start)
        stop = min(row_start + len(logits), self.sequence.length - 1)
        if start >= stop:
            return
        own = logits[start - row_start : stop - row_start]
        next_ids = torch.from_numpy(self.sequence.token_ids[start + 1 : stop + 1].astype(np.int64))
        statistics = token_statistics(own, next_ids.to(logits.device))
        self._streams[:, start + 1 : stop + 1] = torch.stack(statistics).cpu().numpy()
        first_answer_row = self.sequence.prompt_length - 1
        if self.sequence.option_ids and start <= first_answer_row < stop:
            row = own[first_answer_row - start]
            self.option_logprobs = option_logprobs(row, self.sequence.option_ids)

    def failure(self) -> str | None:
        """Why the sequence failed, if the logits of a kept row hold NaN."""
        entropy = self._streams[1, self.sequence.row_start + 1 :]
        return "the logits hold NaN" if np.isnan(entropy).any() else None

    def arrays(self) -> dict[str, Float[np.ndarray, "token"]]:
        """The streams by name."""
        return dict(
            zip(("token_logprob", "token_entropy", "top1_margin"), self._streams, strict=True)
        )


def read_likelihood(done: DeferredPass, sequences: Sequence[TokenSequence]) -> list[Likelihood]:
    """The likelihood streams of a batch; only the rows that a sequence keeps are computed."""
    found = [Likelihood(sequence) for sequence in sequences]
    start = min(sequence.row_start for sequence in sequences)
    stop = max(sequence.length for sequence in sequences) - 1
    n_rows = least = max(1, LOGIT_ROWS // len(sequences))
    while start < stop:
        logits = done.logits(start, min(start + n_rows, stop))
        for index, likelihood in enumerate(found):
            likelihood.rows(start, logits[index])
        start += logits.shape[1]
        n_rows = max(least, LOGIT_BYTES // (4 * logits.shape[0] * logits.shape[2]))
    return found


def option_logprobs(
    logits: Float[Tensor, "vocabulary"], option_ids: Sequence[Sequence[int]]
) -> tuple[float, ...]:
    """Log-probability (nat) of each option, summed over the tokens that stand for it.

    Args:
        logits: Of the row before the answer.
        option_ids: Tokens of each option.
    """
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    return tuple(
        float(torch.logsumexp(log_probabilities[list(tokens)], dim=0)) for tokens in option_ids
    )


def token_statistics(
    logits: Float[Tensor, "row vocabulary"], next_ids: Int[Tensor, "row"]
) -> TokenStatistics:
    """Log-probability of the next token, entropy (nat) and top-1 margin, in float32.

    Args:
        logits: Output of each row.
        next_ids: The token that follows each row.
    """
    n_rows = max(1, _STATISTICS_BYTES // (4 * logits.shape[1]))
    parts = [
        _statistics_of_rows(rows.float(), ids)
        for rows, ids in zip(
            torch.split(logits, n_rows), torch.split(next_ids, n_rows), strict=True
        )
    ]
    return TokenStatistics(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _statistics_of_rows(
    logits: Float[Tensor, "row vocabulary"], next_ids: Int[Tensor, "row"]
) -> TokenStatistics:
    log_probabilities = torch.log_softmax(logits, dim=-1)
    top = log_probabilities.topk(2, dim=-1).values.exp()
    probabilities = log_probabilities.exp()
    # a logit of -inf has probability 0 and adds nothing, where 0 * -inf would be NaN
    products = probabilities * log_probabilities.clamp(min=torch.finfo(torch.float32).min)
    return TokenStatistics(
        logprob=log_probabilities.gather(1, next_ids[:, None])[:, 0],
        entropy=-products.sum(-1),
        margin=top[:, 0] - top[:, 1],
    )
