"""Summaries of the hidden states of the answer's tokens, and the states themselves."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.features.base import feature
from graphhalu.features.block import Ragged, TraceBlock
from graphhalu.features.matrices import (
    chosen_by_trace,
    finite_or_missing,
    is_answer_state,
    keeps_all_states,
    state_axis,
    states,
    trace_place,
    unit_states,
)

PerLayer = Float[np.ndarray, "trace hidden_layer"]

RIDGE: Final = 1e-3
"""What is added to the diagonal of the Gram matrix of the hidden score."""

MASSIVE_LEVEL: Final = 100.0
"""A massive activation is larger than this."""

MASSIVE_RATIO: Final = 1000.0
"""A massive activation is at least so many times the median."""

Reduce = Callable[[np.ndarray, Ragged], np.ndarray]


@feature("hidden | hidden_rows")
def hidden_norm(block: TraceBlock) -> PerLayer:
    """Mean Euclidean norm of the answer tokens' hidden states, from 0 up.

    Raises:
        TraceNotFoundError: If the traces keep no hidden states.

    Summary:
        Length of the answer tokens' hidden states

    Formula:
        mean over answer tokens t of |h[l, t]|

    Direction:
        higher: longer states

    Source:
        Common summary. The last hidden state is after the final norm.
    """

    def norm(found: Float[np.ndarray, "item unit"], by_trace: Ragged) -> np.ndarray:
        square = np.einsum("iu,iu->i", found, found)
        return by_trace.mean(np.sqrt(square))

    return _each_layer(block, norm)


@feature("hidden | hidden_rows")
def hidden_shift(block: TraceBlock) -> Float[np.ndarray, "trace hidden_pair"]:
    """Mean of one minus the cosine between a token's states of neighbouring kept layers.

    Args:
        block: Traces that keep hidden states.

    Returns:
        Mean over the answer's tokens, in [0, 2].

    Raises:
        TraceNotFoundError: If the traces keep no hidden states.

    Summary:
        Change of direction of the hidden state from one kept layer to the next

    Formula:
        mean over answer tokens t of 1 - cos(h[l, t], h[l + 1, t])

    Direction:
        higher: the layers turn the state more

    Source:
        Instability across layers; neighbours are the kept hidden states. The last hidden state is
        after the final norm.
    """
    is_chosen = is_answer_state(block)
    by_trace = chosen_by_trace(block, is_chosen)
    before = unit_states(states(block, 0, is_chosen))
    values = np.full((len(block), len(block.shape.hidden_layers) - 1), np.nan)
    for pair in range(values.shape[1]):
        after = unit_states(states(block, pair + 1, is_chosen))
        cosine = np.einsum("iu,iu->i", before, after, dtype=np.float64)
        values[:, pair] = by_trace.mean(1.0 - np.clip(cosine, -1.0, 1.0))
        before = after
    return finite_or_missing(values)


@feature("hidden | hidden_rows")
def hidden_cosine_mean(block: TraceBlock, *, reduction: Literal["mean", "max"] = "mean") -> PerLayer:
    """Cosine of the answer tokens' states to the mean state of the whole sequence.

    Args:
        block: Traces that keep the hidden states of all tokens.
        reduction: What is taken over the answer's tokens.

    Returns:
        Values in [-1, 1]; NaN where states of the prompt are not kept.

    Raises:
        TraceNotFoundError: If the traces keep no hidden states.

    Summary:
        Cosine of answer states to the mean state of the sequence, averaged

    Formula:
        mean over answer tokens t of cos(h[l, t], mean over all tokens u of h[l, u])

    Direction:
        higher: the answer's tokens are more like sinks

    Source:
        Mirage in the Eyes, arXiv 2501.15269: sink tokens are the closest to the mean; there one
        middle layer. The last hidden state is after the final norm.
    """
    _, axis, _ = state_axis(block)
    is_answer = is_answer_state(block)
    by_trace = chosen_by_trace(block, is_answer)
    reduce = by_trace.mean if reduction == "mean" else by_trace.max
    values = np.full((len(block), len(block.shape.hidden_layers)), np.nan)
    for place in range(values.shape[1]):
        found = states(block, place)
        mean = np.add.reduceat(found, axis.offsets[:-1], axis=0) / axis.lengths[:, None]
        towards = unit_states(mean.astype(np.float32))[by_trace.trace]
        cosine = np.einsum("iu,iu->i", unit_states(found[is_answer]), towards, dtype=np.float64)
        values[:, place] = reduce(np.clip(cosine, -1.0, 1.0))
    return finite_or_missing(np.where(keeps_all_states(block)[:, None], values, np.nan))


hidden_cosine_max: Final = replace(
    hidden_cosine_mean,
    name="hidden_cosine_max",
    summary="Largest cosine of an answer state to the mean state of the sequence",
    formula=hidden_cosine_mean.formula.replace("mean over answer", "max over answer"),
    source="Mirage in the Eyes, arXiv 2501.15269: the token at the maximum is its candidate for a "
    "sink inside the answer; there one middle layer. The last hidden state is after the final "
    "norm.",
    direction="higher: a token of the answer is more like a sink",
    parameters={"reduction": "max"},
)


@feature("hidden | hidden_rows")
def hidden_effective_rank(block: TraceBlock) -> PerLayer:
    """Exponential of the entropy of the answer states' normalised singular values.

    Returns:
        Values from 1 to the smaller of answer length and hidden size.

    Raises:
        TraceNotFoundError: If the traces keep no hidden states.

    Summary:
        Effective number of directions of the answer's hidden states

    Formula:
        exp(-sum over k of p[k] log p[k]), p[k] = s[k] / sum s, s = singular values of the answer's
        states, not centred

    Direction:
        higher: the states spread over more directions

    Source:
        Effective rank, Roy and Vetterli 2007. It grows with the length of the answer. The last
        hidden state is after the final norm.
    """

    def rank(gram: Float[np.ndarray, "trace token other"]) -> Float[np.ndarray, "trace"]:
        singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
        total = singular.sum(axis=-1, keepdims=True)
        share = singular / np.where(total > 0, total, np.nan)
        log = np.log(np.where(share > 0, share, 1.0))
        return np.exp(-(share * log).sum(axis=-1))

    return _of_gram(block, rank, is_centred=False)


@feature("hidden | hidden_rows")
def hidden_score(block: TraceBlock) -> PerLayer:
    """Mean logarithm of the singular values of the answer states' centred Gram matrix.

    Raises:
        TraceNotFoundError: If the traces keep no hidden states.

    Summary:
        LLM-Check's hidden score: mean log singular value of the answer's Gram matrix

    Formula:
        mean over k of log s[k](Z J Z' + 0.001 I); Z = states of the answer's tokens, J centres over
        units

    Direction:
        higher: the states span a larger volume

    Source:
        LLM-Check, NeurIPS 2024; all layers are given, the paper picks one. The last hidden state is
        after the final norm.
    """

    def mean_log(gram: Float[np.ndarray, "trace token other"]) -> Float[np.ndarray, "trace"]:
        # the matrix is positive definite: its singular values multiply to its determinant
        n_tokens = gram.shape[-1]
        determinant: Float[np.ndarray, "trace"] = np.linalg.slogdet(gram + RIDGE * np.eye(n_tokens)).logabsdet
        return determinant / n_tokens

    return _of_gram(block, mean_log, is_centred=True)


@feature("hidden | hidden_rows")
def massive_activations(block: TraceBlock, *, of: Literal["all", "answer"] = "all") -> PerLayer:
    """Number of massive activations: above 100 and at least 1000 times the median size.

    Args:
        block: Traces that keep the hidden states of all tokens.
        of: Whose activations are counted; the median is always that of the whole sequence.

    Returns:
        Counts; NaN where states of the prompt are not kept.

    Raises:
        TraceNotFoundError: If the traces keep no hidden states.

    Summary:
        Number of massive activations in the sequence

    Formula:
        count over tokens t and units u of |h[l, t, u]| > 100 and >= 1000 median |h[l]|

    Direction:
        higher: more massive activations

    Source:
        Sun et al. 2024, arXiv 2402.17762. The median is that of the trace. The last hidden state is
        after the final norm.
    """
    _, axis, _ = state_axis(block)
    is_counted = is_answer_state(block) if of == "answer" else np.ones(axis.offsets[-1], dtype=bool)
    values = np.full((len(block), len(block.shape.hidden_layers)), np.nan)
    for place in range(values.shape[1]):
        size = np.abs(states(block, place))
        limit = _massive_limit(size, axis)[axis.trace]
        n_massive = np.zeros(len(size))
        asked = np.flatnonzero(is_counted & ~np.isposinf(limit))
        n_massive[asked] = (size[asked] >= limit[asked, None]).sum(axis=1)
        values[:, place] = axis.sum(np.where(np.isnan(limit), np.nan, n_massive))
    return np.where(keeps_all_states(block)[:, None], values, np.nan)


massive_answer_activations: Final = replace(
    massive_activations,
    name="massive_answer_activations",
    summary="Number of massive activations in the answer",
    formula=massive_activations.formula.replace("over tokens", "over answer tokens"),
    source="As massive_activations; those of the answer mark sinks that form inside it.",
    direction="higher: more massive activations inside the answer",
    parameters={"of": "answer"},
)


def _massive_limit(size: Float[np.ndarray, "item unit"], axis: Ragged) -> Float[np.ndarray, "trace"]:
    """Least size of a massive activation; infinite where there is none, NaN where one is unknown.

    A median takes long: it is asked for only where the largest size could reach the ratio.
    """
    largest = axis.max(size.max(axis=1))
    limit = np.where(np.isfinite(largest), np.inf, np.nan)
    n_small = axis.sum((size <= (largest / MASSIVE_RATIO)[axis.trace, None]).sum(axis=1))
    is_open = (largest > MASSIVE_LEVEL) & (2 * n_small >= axis.lengths * size.shape[1])
    for trace in np.flatnonzero(is_open & np.isfinite(largest)).tolist():
        median = np.median(size[axis.offsets[trace] : axis.offsets[trace + 1]])
        above = np.nextafter(np.float32(MASSIVE_LEVEL), np.float32(np.inf))
        limit[trace] = max(MASSIVE_RATIO * float(median), float(above))
    return limit


@feature("hidden | hidden_rows")
def state_last_prompt(block: TraceBlock) -> Float[np.ndarray, "trace hidden_layer unit"]:
    """State of the last prompt token, which yields the first answer token; NaN if not kept.

    Raises:
        TraceNotFoundError: If the traces keep no hidden states.

    Summary:
        Hidden state of the last prompt token

    Formula:
        h[l, P - 1]

    Direction:
        none: a coordinate has no direction of its own

    Source:
        Input of probes such as SE probes (token before generation). The last hidden state is after
        the final norm.
    """
    return _states_at(block, block.of_record("prompt_length") - 1)


@feature("hidden | hidden_rows")
def state_last_answer(block: TraceBlock) -> Float[np.ndarray, "trace hidden_layer unit"]:
    """State of the last answer token; NaN if not kept.

    Raises:
        TraceNotFoundError: If the traces keep no hidden states.

    Summary:
        Hidden state of the last answer token

    Formula:
        h[l, S - 1]

    Direction:
        none: a coordinate has no direction of its own

    Source:
        Input of probes such as SAPLMA. The last hidden state is after the final norm.
    """
    return _states_at(block, block.of_record("length") - 1)


@feature("hidden | hidden_rows")
def state_mean_answer(block: TraceBlock) -> Float[np.ndarray, "trace hidden_layer unit"]:
    """Mean state of the answer's tokens.

    Raises:
        TraceNotFoundError: If the traces keep no hidden states.

    Summary:
        Mean hidden state of the answer's tokens

    Formula:
        mean over answer tokens t of h[l, t]

    Direction:
        none: a coordinate has no direction of its own

    Source:
        Input of probes such as MIND's, which also averages over layers. The last hidden state is
        after the final norm.
    """

    def mean(found: Float[np.ndarray, "item unit"], by_trace: Ragged) -> np.ndarray:
        return by_trace.mean(found.T).astype(np.float32)

    return _each_layer(block, mean)


def _states_at(
    block: TraceBlock, token: Int[np.ndarray, "trace"]
) -> Float[np.ndarray, "trace hidden_layer unit"]:
    entry, is_kept = trace_place(block, token)
    layers = range(len(block.shape.hidden_layers))
    found = np.stack([states(block, place, entry) for place in layers], axis=1)
    return finite_or_missing(np.where(is_kept[:, None, None], found, np.float32(np.nan)))


def _each_layer(block: TraceBlock, reduce: Reduce) -> Float[np.ndarray, "trace hidden_layer *unit"]:
    """A reduction of the answer's states, hidden layer by hidden layer."""
    is_chosen = is_answer_state(block)
    by_trace = chosen_by_trace(block, is_chosen)
    layers = range(len(block.shape.hidden_layers))
    found = [reduce(states(block, place, is_chosen), by_trace) for place in layers]
    return finite_or_missing(np.stack(found, axis=1))


def _of_gram(block: TraceBlock, reduce: Callable[[np.ndarray], np.ndarray], *, is_centred: bool) -> PerLayer:
    """A number of the products of the answer's states; answers of one length go together."""
    is_chosen: Bool[np.ndarray, "item"] = is_answer_state(block)
    by_trace = chosen_by_trace(block, is_chosen)
    values = np.full((len(block), len(block.shape.hidden_layers)), np.nan)
    for place in range(values.shape[1]):
        found = states(block, place, is_chosen)
        if is_centred:
            found = found - found.mean(axis=-1, keepdims=True)
        for n_tokens in np.unique(by_trace.lengths).tolist():
            alike = np.flatnonzero(by_trace.lengths == n_tokens)
            entry = by_trace.offsets[alike][:, None] + np.arange(n_tokens)
            chosen = found[entry].astype(np.float64)
            gram = chosen @ chosen.transpose(0, 2, 1)
            is_finite = np.isfinite(gram).all(axis=(1, 2))
            values[alike[is_finite], place] = reduce(gram[is_finite])
    return finite_or_missing(values)
