"""Likelihood of the answer, lengths, and how much the beams of a question differ."""

import warnings
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float, Int

from graphhalu.features.base import Feature, feature
from graphhalu.features.block import TraceBlock
from graphhalu.features.matrices import finite_or_missing, states, trace_place
from graphhalu.features.row_statistics import attention_entropy_mean, lookback_ratio
from graphhalu.features.sinks import sink_mass_k4

Reduction = Literal["mean", "min", "max", "sum", "std"]

EIGEN_RIDGE: Final = 1e-3
"""What is added to the diagonal of the covariance of the beams."""

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
    values = finite_or_missing(block.stream(stream).astype(np.float64))
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


def beam_groups(block: TraceBlock) -> Int[np.ndarray, "trace"]:
    """A number for each question, the same for all its beams; -1 for an answer that was given."""
    number: dict[str, int] = {}
    groups = [
        number.setdefault(record.question_id, len(number)) if record.is_on_policy else -1
        for record in block.records
    ]
    return np.array(groups, dtype=np.int64)


def beam_spread(
    values: Float[np.ndarray, "trace *axes"], group: Int[np.ndarray, "trace"]
) -> Float[np.ndarray, "trace *axes"]:
    """Population standard deviation over the beams of each trace's question.

    Args:
        values: A feature; a beam whose value is NaN is left out.
        group: Question of each trace; below 0 for what is not a beam.

    Returns:
        The same value for all beams of a question, from 0 up; NaN where fewer than two beams
        have a value, and for what is not a beam.
    """
    known, spread = finite_or_missing(values.astype(np.float64)), np.full(values.shape, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no beam of a question has a value
        for question in range(int(group.max(initial=-1)) + 1):
            beams = known[group == question]
            has_spread = np.isfinite(beams).sum(axis=0) > 1
            spread[group == question] = np.where(has_spread, np.nanstd(beams, axis=0), np.nan)
    return spread


def spread_of(single: Feature) -> Feature:
    """The spread of a trace-level feature over the beams of a question, as a feature.

    All beams of a question must lie in one block.
    """

    def compute(block: TraceBlock, **parameters: Any) -> Float[np.ndarray, "trace *axes"]:
        return beam_spread(single.values(block, **parameters), beam_groups(block))

    return replace(
        single,
        name=f"beam_std_{single.name}",
        summary=f"Standard deviation over the beams of a question: {single.summary}",
        formula=f"std over beams of ({single.formula})",
        source=f"Instability across beams. {single.source} Missing where only one beam is kept, "
        "and for answers that were given; the same for all beams of a question.",
        direction="higher: the beams differ more",
        compute=compute,
        reads_beams=True,
    )


@feature("hidden | hidden_rows", reads_beams=True)
def beam_eigenscore(block: TraceBlock) -> Float[np.ndarray, "trace"]:
    """Mean log eigenvalue of the covariance between the beams' states in a middle layer.

    Args:
        block: Traces that keep hidden states; all beams of a question are in one block.

    Returns:
        The same value for all beams of a question; NaN where there is one beam only, or a state
        is not finite, and for answers that were given.

    Raises:
        TraceNotFoundError: If the traces keep no hidden states.

    Summary:
        EigenScore over the beams of a question

    Formula:
        mean over k of log of eigenvalue k of cov(Z) + 0.001 I; Z = h[L / 2, S - 1] of each beam;
        cov between beams, over units

    Direction:
        higher: the beams mean more different things

    Source:
        INSIDE, arXiv 2402.03744, over beams and not over samples: the state of the last answer
        token, in the kept layer nearest to the middle, natural logarithm, no clipping of features.
        It depends on the number of beams.
    """
    entry, _ = trace_place(block, block.of_record("length") - 1)
    found = states(block, middle_state(block), entry).astype(np.float64)
    group = beam_groups(block)
    values = np.full(len(block), np.nan)
    for question in range(int(group.max(initial=-1)) + 1):
        beams = np.flatnonzero(group == question)
        if len(beams) > 1 and np.isfinite(found[beams]).all():
            values[beams] = eigenscore(found[beams])
    return finite_or_missing(values)


def eigenscore(embedding: Float[np.ndarray, "beam unit"]) -> float:
    """``mean over k of log eigenvalue k of (Z J Z' / (d - 1) + 0.001 I)``; ``J`` centres units."""
    covariance = np.cov(embedding) + EIGEN_RIDGE * np.eye(len(embedding))
    return float(np.linalg.slogdet(covariance).logabsdet / len(embedding))


def middle_state(block: TraceBlock) -> int:
    """Place of the kept hidden state nearest to half of the model's depth; the lower of two."""
    depth = np.array(block.shape.hidden_layers, dtype=np.float64)
    return int(np.abs(depth - block.shape.n_layers / 2).argmin()) if len(depth) else 0


beam_std_logprob_mean: Final = spread_of(logprob_mean)
beam_std_answer_length: Final = spread_of(answer_length)
beam_std_output_entropy_mean: Final = spread_of(output_entropy_mean)
beam_std_sink_mass_k4: Final = spread_of(sink_mass_k4)
beam_std_lookback_ratio: Final = spread_of(lookback_ratio)
beam_std_attention_entropy_mean: Final = spread_of(attention_entropy_mean)
