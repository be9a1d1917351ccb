"""Likelihood that the model gave its own answer, and the lengths of prompt and answer."""

from typing import Final, Literal

import numpy as np
from jaxtyping import Float

from graphhalu.features.base import feature
from graphhalu.features.block import TraceBlock

Reduction = Literal["mean", "min", "max", "sum", "std"]

_STREAM: Final = "The stream itself, at the row that predicts the token"
_STD: Final = "Population standard deviation, beside the mean"


def answer_values(block: TraceBlock, stream: str, reduction: Reduction) -> Float[np.ndarray, "trace"]:
    """A token stream reduced over the answer tokens of each trace, in float64.

    NaN for an empty answer, and where a value is not finite.

    Args:
        block: Keeps the stream.
        stream: ``"token_logprob"``, ``"token_entropy"`` or ``"top1_margin"``.
        reduction: What is done with the values.
    """
    stored = block.stream(stream).astype(np.float64)
    values = np.where(np.isfinite(stored), stored, np.nan)
    tokens, is_answer = block.tokens, block.is_answer_token
    if reduction == "sum":
        has_answer = tokens.sum(is_answer) > 0
        return np.where(has_answer, tokens.sum(np.where(is_answer, values, 0.0)), np.nan)
    if reduction == "min":
        return -tokens.max(-values, is_answer)
    reduce = {"mean": tokens.mean, "max": tokens.max, "std": tokens.std}[reduction]
    return reduce(values, is_answer)


def token_values(block: TraceBlock, stream: str) -> Float[np.ndarray, "row"]:
    """A token stream at the token that each row predicts; NaN for the row of the last token."""
    trace = block.rows.trace
    predicted = block.tokens.offsets[trace] + block.row_token + 1
    is_there = block.row_token + 1 < block.of_record("length")[trace]
    values = block.stream(stream)
    return np.where(is_there, values[np.minimum(predicted, len(values) - 1)], np.nan)


@feature("token_logprob")
def logprob_mean(block: TraceBlock) -> Float[np.ndarray, "trace"]:
    """Mean log-probability (nat) of the answer tokens.

    Formula:
        mean_t log p(t | before)

    Direction:
        a likelier answer; at most 0

    Source:
        Length-normalised likelihood, Malinin & Gales 2021, arXiv:2002.07650
    """
    return answer_values(block, "token_logprob", "mean")


@feature("token_logprob")
def logprob_min(block: TraceBlock) -> Float[np.ndarray, "trace"]:
    """Log-probability (nat) of the least likely answer token.

    Formula:
        min_t log p(t | before)

    Direction:
        a likelier worst token; at most 0

    Source:
        Manakul et al. 2023, arXiv:2303.08896, with the opposite sign
    """
    return answer_values(block, "token_logprob", "min")


@feature("token_logprob")
def logprob_sum(block: TraceBlock) -> Float[np.ndarray, "trace"]:
    """Log-probability (nat) of the whole answer; falls with length.

    Formula:
        sum_t log p(t | before)

    Direction:
        a likelier answer; at most 0

    Source:
        Maximum sequence probability, Fadeeva et al. 2023, arXiv:2311.07383
    """
    return answer_values(block, "token_logprob", "sum")


@feature("token_logprob", source=_STD)
def logprob_std(block: TraceBlock) -> Float[np.ndarray, "trace"]:
    """Spread of the log-probabilities (nat) of the answer tokens.

    Formula:
        std_t log p(t | before)

    Direction:
        varies more
    """
    return answer_values(block, "token_logprob", "std")


@feature("token_logprob")
def perplexity(block: TraceBlock) -> Float[np.ndarray, "trace"]:
    """Exponential of the mean negative log-probability.

    Beyond a float it is infinite, and so missing.

    Formula:
        exp(-mean_t log p(t | before))

    Direction:
        a less likely answer; from 1 up

    Source:
        Jelinek et al. 1977; as a detector Ren et al. 2023, arXiv:2209.15558
    """
    with np.errstate(over="ignore"):
        found: Float[np.ndarray, "trace"] = np.exp(-logprob_mean(block))
    return found


@feature("token_entropy")
def output_entropy_mean(block: TraceBlock) -> Float[np.ndarray, "trace"]:
    """Mean entropy (nat) of the distributions that the answer tokens were taken from.

    Formula:
        mean_t H(p(. | before))

    Direction:
        less certain; from 0 up

    Source:
        Mean token entropy, Fomicheva et al. 2020, arXiv:2005.10608
    """
    return answer_values(block, "token_entropy", "mean")


@feature("token_entropy")
def output_entropy_max(block: TraceBlock) -> Float[np.ndarray, "trace"]:
    """Largest entropy (nat) at an answer token.

    Formula:
        max_t H(p(. | before))

    Direction:
        less certain; from 0 up

    Source:
        Manakul et al. 2023, arXiv:2303.08896
    """
    return answer_values(block, "token_entropy", "max")


@feature("token_entropy", source=_STD)
def output_entropy_std(block: TraceBlock) -> Float[np.ndarray, "trace"]:
    """Spread of the entropies (nat) at the answer tokens.

    Formula:
        std_t H(p(. | before))

    Direction:
        varies more
    """
    return answer_values(block, "token_entropy", "std")


@feature("top1_margin")
def margin_mean(block: TraceBlock) -> Float[np.ndarray, "trace"]:
    """Mean probability of the likeliest token minus that of the second.

    Formula:
        mean_t (p_1 - p_2)

    Direction:
        more certain; 0 to 1

    Source:
        Margin of confidence, Scheffer et al. 2001, averaged over tokens
    """
    return answer_values(block, "top1_margin", "mean")


@feature("top1_margin")
def margin_min(block: TraceBlock) -> Float[np.ndarray, "trace"]:
    """Smallest difference between the likeliest token's probability and the second's.

    Formula:
        min_t (p_1 - p_2)

    Direction:
        more certain; 0 to 1

    Source:
        Margin of confidence, Scheffer et al. 2001
    """
    return answer_values(block, "top1_margin", "min")


@feature("token_logprob", source=_STREAM)
def token_logprob(block: TraceBlock) -> Float[np.ndarray, "row"]:
    """Log-probability (nat) of the token that a row predicts.

    Formula:
        log p(t | before)

    Direction:
        a likelier token; at most 0
    """
    return token_values(block, "token_logprob")


@feature("token_entropy", source=_STREAM)
def token_output_entropy(block: TraceBlock) -> Float[np.ndarray, "row"]:
    """Entropy (nat) of the distribution that a row gives.

    Formula:
        H(p(. | before))

    Direction:
        less certain; from 0 up
    """
    return token_values(block, "token_entropy")


@feature("top1_margin", source=_STREAM)
def token_margin(block: TraceBlock) -> Float[np.ndarray, "row"]:
    """Likeliest token's probability minus the second's.

    Formula:
        p_1 - p_2

    Direction:
        more certain; 0 to 1
    """
    return token_values(block, "top1_margin")


@feature()
def answer_length(block: TraceBlock) -> Float[np.ndarray, "trace"]:
    """Number of answer tokens.

    Formula:
        S - P

    Direction:
        a longer answer

    Source:
        Control: length alone separates the answers of some data sets.
    """
    length = block.of_record("length") - block.of_record("prompt_length")
    return length.astype(np.float64)


@feature()
def prompt_length(block: TraceBlock) -> Float[np.ndarray, "trace"]:
    """Number of prompt tokens.

    Formula:
        P

    Direction:
        a longer prompt

    Source:
        Control, as answer_length.
    """
    return block.of_record("prompt_length").astype(np.float64)
