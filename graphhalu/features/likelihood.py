"""How likely the model found its own answer."""

import numpy as np
from jaxtyping import Float

from graphhalu.errors import NonFiniteError, NotEnoughDataError
from graphhalu.traces.trace import Trace


def answer_stream(trace: Trace, name: str) -> Float[np.ndarray, "answer_token"]:
    """The values of a token stream at the answer tokens.

    Args:
        trace: Keeps the stream.
        name: ``"token_logprob"``, ``"token_entropy"`` or ``"top1_margin"``.

    Raises:
        NotEnoughDataError: If the answer is empty.
        NonFiniteError: If a value is NaN or infinite.
    """
    values = trace.stream(name)[trace.prompt_length :].astype(np.float64)
    if not values.size:
        message = f"trace {trace.trace_id!r} has an empty answer: {name} has no value there"
        raise NotEnoughDataError(message)
    is_wrong = ~np.isfinite(values)
    if is_wrong.any():
        token = trace.prompt_length + int(is_wrong.argmax())
        message = (
            f"trace {trace.trace_id!r}: expected finite {name} on the answer tokens, got "
            f"{values[is_wrong][0]} at token {token}\n  Extract it again, or leave it out"
        )
        raise NonFiniteError(message)
    return values


def mean_logprob(trace: Trace) -> float:
    """Mean log-probability (nat) of the answer tokens: ``mean_t log p(t | before)``.

    Raises:
        NotEnoughDataError: If the answer is empty.
        NonFiniteError: If a log-probability is not finite.

    Source:
        Length-normalised likelihood, Malinin & Gales 2021, arXiv:2002.07650.
    """
    return float(answer_stream(trace, "token_logprob").mean())


def min_logprob(trace: Trace) -> float:
    """Log-probability (nat) of the least likely answer token.

    Raises:
        NotEnoughDataError: If the answer is empty.
        NonFiniteError: If a log-probability is not finite.

    Source:
        Manakul et al. 2023, arXiv:2303.08896, with the opposite sign.
    """
    return float(answer_stream(trace, "token_logprob").min())


def sum_logprob(trace: Trace) -> float:
    """Log-probability (nat) of the whole answer; falls with its length.

    Raises:
        NotEnoughDataError: If the answer is empty.
        NonFiniteError: If a log-probability is not finite.

    Source:
        Maximum sequence probability, Fadeeva et al. 2023, arXiv:2311.07383.
    """
    return float(answer_stream(trace, "token_logprob").sum())


def perplexity(trace: Trace) -> float:
    """Perplexity of the answer: ``exp(-mean_t log p(t | before))``, from 1 up.

    Raises:
        NotEnoughDataError: If the answer is empty.
        NonFiniteError: If a log-probability is not finite, or the result is beyond a float.

    Source:
        Jelinek et al. 1977; as a detector in Ren et al. 2023, arXiv:2209.15558.
    """
    with np.errstate(over="ignore"):
        value = float(np.exp(-mean_logprob(trace)))
    if not np.isfinite(value):
        message = (
            f"trace {trace.trace_id!r}: perplexity is beyond a float "
            f"(mean log-probability {mean_logprob(trace):g})\n  Use mean_logprob"
        )
        raise NonFiniteError(message)
    return value


def mean_entropy(trace: Trace) -> float:
    """Mean entropy (nat) of the distributions that the answer tokens were taken from.

    Raises:
        NotEnoughDataError: If the answer is empty.
        NonFiniteError: If an entropy is not finite.

    Source:
        Mean token entropy, Fomicheva et al. 2020, arXiv:2005.10608.
    """
    return float(answer_stream(trace, "token_entropy").mean())


def mean_margin(trace: Trace) -> float:
    """Mean over answer tokens of the likeliest token's probability minus the second's, in [0, 1].

    Raises:
        NotEnoughDataError: If the answer is empty.
        NonFiniteError: If a margin is not finite.

    Source:
        Margin of confidence, Scheffer et al. 2001, averaged over tokens.
    """
    return float(answer_stream(trace, "top1_margin").mean())
