"""Node features of token graphs, in named blocks.

A block is a function of a trace and a model layer; one line in ``NODE_BLOCKS`` adds one.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float

from graphhalu.axes import N_SPANS, SPAN_NAMES
from graphhalu.errors import NonFiniteError, UsageError
from graphhalu.features.instability import bounded_std, head_std
from graphhalu.registry import unknown_name
from graphhalu.traces.schema import N_SINK_KEYS
from graphhalu.traces.trace import Trace

SELF_ATTENTION_FLOOR: Final = 1e-6
"""Attention to the own token is kept from 0 before its logarithm."""


class NodeBlock(NamedTuple):
    """Features of every token, and what each column is."""

    values: Float[np.ndarray, "token feature"]
    names: tuple[str, ...]


BlockFunction = Callable[[Trace, int], NodeBlock]


def node_features(trace: Trace, layer: int, blocks: Sequence[str]) -> NodeBlock:
    """The columns of several blocks side by side, named ``block.column``, in float32.

    Args:
        trace: Keeps all rows and what the blocks read.
        layer: Model layer.
        blocks: Names in ``NODE_BLOCKS``.

    Raises:
        UsageError: If no block is named.
        UnknownNameError: If a name is in no table; lists the known ones.
        TraceNotFoundError: If the trace does not keep what a block reads.
        NonFiniteError: If a block yields NaN or infinity; names it.
    """
    if not blocks:
        message = f"a graph needs at least one block of node features: {', '.join(NODE_BLOCKS)}"
        raise UsageError(message)
    columns: list[np.ndarray] = []
    names: list[str] = []
    for name in blocks:
        if name not in NODE_BLOCKS:
            raise unknown_name("block of node features", name, NODE_BLOCKS)
        block = NODE_BLOCKS[name](trace, layer)
        _check_finite(block, name, trace, layer)
        columns.append(block.values.astype(np.float32))
        names.extend(f"{name}.{column}" for column in block.names)
    return NodeBlock(np.concatenate(columns, axis=1), tuple(names))


def hidden_block(trace: Trace, layer: int) -> NodeBlock:
    """Hidden state that the layer leaves: ``hidden[layer + 1]``."""
    values = trace.hidden(layer + 1)
    return NodeBlock(values, tuple(f"unit{unit}" for unit in range(values.shape[1])))


def position_block(trace: Trace, _layer: int) -> NodeBlock:
    """Place of a token: in the sequence and from the last prompt token, as shares of the length."""
    tokens = np.arange(trace.length)
    columns = (
        tokens / (trace.length - 1),
        trace.is_answer,
        (tokens - (trace.prompt_length - 1)) / trace.length,
        np.full(trace.length, np.log(trace.length)),
    )
    names = ("relative", "is_answer", "from_prompt_end", "log_length")
    return NodeBlock(np.stack(columns, axis=1).astype(np.float64), names)


def span_block(trace: Trace, _layer: int) -> NodeBlock:
    """One column a named span, 1 for its tokens."""
    return NodeBlock(np.eye(N_SPANS)[trace.span_code], SPAN_NAMES)


def sink_block(trace: Trace, layer: int) -> NodeBlock:
    """What a token receives from the rows that can see it, and what it pays to the sink, a head.

    ``received_headH`` is the mean attention to this key over the rows that can see it, in
    [0, 1]; ``paid_headH`` is the attention of this row to the first four tokens, in [0, 1].
    Rows of the sink itself pay 1 by construction.
    """
    received = trace.layer_stream("received", layer) / _n_rows_that_see(trace, layer)
    paid = _paid_to_sink(trace, layer)
    names = (*_head_names("received", len(received)), *_head_names("paid", len(paid)))
    return NodeBlock(np.concatenate([received, paid]).T, names)


def instability_block(trace: Trace, layer: int) -> NodeBlock:
    """Disagreement of the heads on the sink share of a row: its std, and std over its bound."""
    share = _paid_to_sink(trace, layer)[None]
    columns = (head_std(share)[0], np.nan_to_num(bounded_std(share)[0], nan=0.0))
    return NodeBlock(np.stack(columns, axis=1), ("head_std", "bounded_std"))


def self_attention_block(trace: Trace, layer: int) -> NodeBlock:
    """Logarithm of a token's attention to itself, a head: ``log(max(a, 1e-6))``."""
    own = trace.layer_stream("self_attention", layer)
    values = np.log(np.maximum(own, SELF_ATTENTION_FLOOR)).T
    return NodeBlock(values, _head_names("log", len(own)))


def entropy_block(trace: Trace, layer: int) -> NodeBlock:
    """Entropy of a row over its largest value, a head: ``entropy / log(i + 1)``; 0 for row 0."""
    entropy = trace.layer_stream("row_entropy", layer)
    largest = np.log(np.arange(1, trace.length + 1))
    largest[0] = np.inf  # a row with one key has no entropy to share
    return NodeBlock((entropy / largest).T, _head_names("relative", len(entropy)))


def likelihood_block(trace: Trace, _layer: int) -> NodeBlock:
    """Log-probability, entropy and margin of a token; the first has none and says so."""
    streams = ("token_logprob", "token_entropy", "top1_margin")
    columns = np.stack([*map(trace.stream, streams), np.zeros(trace.length)], axis=1)
    columns[0] = (0.0, 0.0, 0.0, 1.0)
    return NodeBlock(columns, ("logprob", "entropy", "margin", "is_missing"))


NODE_BLOCKS: Final[dict[str, BlockFunction]] = {
    "hidden": hidden_block,
    "position": position_block,
    "span": span_block,
    "sink": sink_block,
    "instability": instability_block,
    "self_attention": self_attention_block,
    "entropy": entropy_block,
    "likelihood": likelihood_block,
}
"""Name of a block to the function that computes it."""


def _paid_to_sink(trace: Trace, layer: int) -> Float[np.ndarray, "head row"]:
    keys = trace.layer_stream("sink_keys", layer)[..., :N_SINK_KEYS].astype(np.float64)
    return np.clip(keys.sum(-1), 0.0, 1.0)


def _n_rows_that_see(trace: Trace, layer: int) -> Float[np.ndarray, "token"]:
    window = trace.shape.layer_windows[trace.shape.attention_layers.index(layer)]
    later = np.arange(trace.length, 0, -1, dtype=np.float64)
    return later if window is None else np.minimum(later, window)


def _head_names(what: str, n_heads: int) -> tuple[str, ...]:
    return tuple(f"{what}_head{head}" for head in range(n_heads))


def _check_finite(block: NodeBlock, name: str, trace: Trace, layer: int) -> None:
    is_wrong = ~np.isfinite(block.values)
    if is_wrong.any():
        token, column = np.argwhere(is_wrong)[0]
        message = (
            f"trace {trace.trace_id!r}, layer {layer}: expected finite node features, got "
            f"{block.values[token, column]} in {name}.{block.names[column]} at token {token}\n"
            f"  Extract the trace again, or leave this block out"
        )
        raise NonFiniteError(message)
