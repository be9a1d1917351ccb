"""Eigenvalues of attention and of its Laplacian, and the spanning tree of its graph."""

from collections.abc import Callable
from math import prod
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.core.numerics import ragged_offsets
from graphhalu.features.base import feature
from graphhalu.features.block import Rows, TraceBlock
from graphhalu.features.matrices import attention_at, finite_or_missing, row_pairs, row_starts
from graphhalu.features.row_statistics import TOP_K, mean_received, token_diagonal, top_k

Graphs = Float[np.ndarray, "head graph query other"]

LOG_FLOOR: Final = 1e-12
"""Smallest argument of a logarithm; the streams are half precision and end at 6e-8, below is 0."""


def log_diagonal(rows: Rows) -> Float[np.ndarray, "layer head row"]:
    """Natural logarithm of each row's attention to its own token, at least ``log 1e-12``."""
    # NaN stays NaN: np.maximum hands it on
    own = np.maximum(rows.read("self_attention"), np.float32(LOG_FLOOR))
    return np.log(own)


@feature("self_attention")
def self_attention_log(block: TraceBlock) -> Float[np.ndarray, "trace layer head"]:
    """Mean logarithm of a token's attention to itself, over the rows that make the answer.

    Mean of :func:`log_diagonal` over the rows that produce the answer.

    Formula:
        mean_i log max(A[i, i], 1e-12)

    Direction:
        more attention of tokens to themselves; at most 0

    Source:
        LLM-Check, Sriramanan et al. 2024 (NeurIPS), per head and not summed. The stream is half
        precision: less than 6e-8 is 0 and counts as 1e-12; self_attention_clipped says how often.
    """
    rows = block.answer_rows
    return rows.ragged.mean(log_diagonal(rows))


@feature("self_attention")
def self_attention_log_all(block: TraceBlock) -> Float[np.ndarray, "trace layer head"]:
    """Mean logarithm of a token's attention to itself, over all stored rows.

    Formula:
        mean_i log max(A[i, i], 1e-12)

    Direction:
        more attention of tokens to themselves; at most 0

    Source:
        AttnLogDet of Binkowski et al. 2025, LapEigvals (EMNLP); floor as in self_attention_log.
    """
    return block.rows.mean(log_diagonal(block.all_rows))


@feature("self_attention")
def self_attention_clipped(block: TraceBlock) -> Float[np.ndarray, "trace layer head"]:
    """Share of rows whose attention to themselves is too small for half precision.

    Share of the rows that produce the answer whose own attention is below the floor.

    Formula:
        mean_i 1[A[i, i] < 1e-12]

    Direction:
        more rows at the floor; 0 to 1

    Source:
        Tells where self_attention_log rests on its floor.
    """
    rows = block.answer_rows
    is_below = rows.read("self_attention") < LOG_FLOOR
    return rows.ragged.mean(is_below.astype(np.float32))


@feature("self_attention")
def self_attention_mean(block: TraceBlock) -> Float[np.ndarray, "trace layer head"]:
    """Mean attention of the rows that produce the answer to their own token.

    Formula:
        mean_i A[i, i]

    Direction:
        more attention of tokens to themselves; 0 to 1

    Source:
        The diagonal without a logarithm, which has no floor.
    """
    rows = block.answer_rows
    return rows.ragged.mean(rows.read("self_attention"))


@feature("self_attention")
def token_self_attention(block: TraceBlock) -> Float[np.ndarray, "row layer head"]:
    """Attention of a row to its own token.

    Formula:
        A[i, i]

    Direction:
        more attention to the own token; 0 to 1

    Source:
        Node features of CHARM, Frasca et al. 2026.
    """
    return np.moveaxis(block.stream("self_attention"), -1, 0)


@feature("self_attention")
def attneig_top(block: TraceBlock, *, k: int = TOP_K) -> Float[np.ndarray, "trace layer head rank"]:
    """Largest eigenvalues of attention, which stand on its diagonal.

    Attention is a triangular matrix.

    Formula:
        top k of A[i, i]

    Direction:
        the k-th largest eigenvalue is larger

    Source:
        AttnEigvals of Binkowski et al. 2025, LapEigvals (EMNLP). Over the stored rows, the last
        token's included.
    """
    own = block.stream("self_attention")
    return top_k(own, block.rows, np.ones((1, own.shape[-1]), dtype=bool), k)


def laplacian(block: TraceBlock) -> Float[np.ndarray, "layer head token"]:
    """Eigenvalues of ``D - A``: mean received attention minus the diagonal.

    ``D`` holds the mean received attention of each key; the matrix is triangular, so that its
    eigenvalues stand on its diagonal. Tokens without a stored row have no diagonal: NaN there.
    """
    has_row, own = token_diagonal(block)
    return np.where(has_row, mean_received(block) - own, np.float32(np.nan))


@feature("received", "self_attention")
def lapeig_top(block: TraceBlock, *, k: int = TOP_K) -> Float[np.ndarray, "trace layer head rank"]:
    """Largest eigenvalues of the Laplacian of attention, in closed form.

    Largest of :func:`laplacian`, over the tokens with a stored row.

    Formula:
        top k of s_j - A[j, j], s_j = sum_(i >= j) A[i, j] / #{i >= j that see j}

    Direction:
        the k-th largest eigenvalue is larger

    Source:
        Binkowski et al. 2025, LapEigvals (EMNLP). With the row of the last token, which generation
        does not give and the replay does; lapeig_top_cut is without. Over the tokens with a stored
        row.
    """
    return top_k(laplacian(block), block.tokens, token_diagonal(block)[0][None], k)


@feature("received", "self_attention", "attention")
def lapeig_top_cut(block: TraceBlock, *, k: int = TOP_K) -> Float[np.ndarray, "trace layer head rank"]:
    """Largest eigenvalues of the Laplacian of attention without the last token.

    As :func:`lapeig_top` for the trace without its last token, which generation gives no row.

    Formula:
        top k of s_j - A[j, j] over j < S - 1, s_j over the rows i < S - 1

    Direction:
        the k-th largest eigenvalue is larger

    Source:
        Binkowski et al. 2025, LapEigvals (EMNLP), who have no row for the last token.
    """
    has_row, own = token_diagonal(block)
    is_last = np.zeros(len(has_row), dtype=bool)
    is_last[block.tokens.offsets[1:] - 1] = True
    sees_last, given = _last_row(block)
    n_rows = (block.n_rows_that_see - sees_last)[:, None]
    received = (block.stream("received") - given) / np.maximum(n_rows, 1).astype(np.float32)
    is_counted = (has_row & ~is_last)[None]
    return top_k(np.where(is_counted, received - own, np.float32(0)), block.tokens, is_counted, k)


def _last_row(
    block: TraceBlock,
) -> tuple[Bool[np.ndarray, "layer token"], Float[np.ndarray, "layer head token"]]:
    """Which tokens the last row of their trace sees, and the attention that it pays them."""
    last = block.rows.offsets[1:] - 1
    start = row_starts(block)[last]
    index = start[block.tokens.trace] + block.tokens.position
    layers = [attention_at(block, place, index) for place in range(len(block.n_visible))]
    distance = (block.of_record("length") - 1)[block.tokens.trace] - block.tokens.position
    sees = distance < block.n_visible[:, last][:, block.tokens.trace]
    return sees, np.stack(layers)


@feature("attention")
def mst_divergence(block: TraceBlock) -> Float[np.ndarray, "trace layer head"]:
    """Length of the minimum spanning tree over prompt and answer tokens, per answer token.

    Args:
        block: Traces that keep whole attention of the answer tokens' own rows.

    Returns:
        Values in [0, 1]; NaN where a row of an answer token is not stored or holds NaN, and in
        a layer whose window of one key joins nothing.

    Raises:
        TraceNotFoundError: If the traces do not keep whole attention: among censored edges the
            tree is not known.

    Summary:
        Length of the minimum spanning tree that joins the answer to the prompt, a token

    Formula:
        sum of edges of MST(d) / answer_length; d[i, j] = 1 - max(A[i, j], A[j, i]) over answer
        tokens and one node for the prompt, d[i, prompt] = 1 - max over j < P of A[i, j]

    Direction:
        higher: the answer attends less to the prompt and to itself

    Source:
        TOHA, ACL 2026. All heads are given; the paper picks up to ten on labelled data. Keys out of
        a sliding window are not edges, which changes no tree: they would be 1 long, and each token
        sees the one before it.
    """
    n_tokens = block.of_record("length") - block.of_record("prompt_length")
    order = np.argsort(-n_tokens, kind="stable")
    graph_of = _answer_graphs(block, order)
    values = np.full((len(block.shape.attention_layers), block.shape.n_heads, len(block)), np.nan)
    for place, window in enumerate(block.shape.layer_windows):
        if window is None or window > 1:
            values[place][:, order] = prim_length(graph_of(place), n_tokens[order])
    is_whole = block.of_record("row_start") <= block.of_record("prompt_length")
    per_token = np.where(is_whole, values / n_tokens, np.nan)
    return finite_or_missing(per_token.transpose(2, 0, 1))


def _answer_graphs(block: TraceBlock, order: Int[np.ndarray, "trace"]) -> Callable[[int], Graphs]:
    """Gives for a layer the attention of each answer token to earlier ones; node 0 is the prompt.

    The strongest attention to any prompt token is that to the prompt.

    Args:
        block: Traces that keep whole attention.
        order: Traces in the order of the graphs.
    """
    prompt_length = block.of_record("prompt_length")
    pairs = row_pairs(block, block.row_token >= prompt_length[block.rows.trace])
    trace = pairs.by_trace.trace
    n_nodes = 1 + int((block.of_record("length") - prompt_length).max())
    node = 1 + block.row_token[pairs.row] - prompt_length[trace]
    start = (np.argsort(order)[trace] * n_nodes + node) * n_nodes
    other = 1 + pairs.key - prompt_length[trace][pairs.by_row.trace]
    is_prompt = other < 1
    is_edge = ~is_prompt & (other < node[pairs.by_row.trace])
    of_answer = (start[pairs.by_row.trace] + other)[is_edge]
    # pairs with a prompt token, row by row, then those between answer tokens
    index = np.concatenate([pairs.index[is_prompt], pairs.index[is_edge]])
    n_prompt, row_offsets = int(is_prompt.sum()), ragged_offsets(prompt_length[trace])[:-1]
    shape = (len(block), n_nodes, n_nodes)

    def graph(place: int) -> Graphs:
        weights = attention_at(block, place, index)
        found = np.zeros((len(weights), prod(shape)), dtype=np.float32)
        found[:, start] = np.maximum.reduceat(weights[:, :n_prompt], row_offsets, axis=-1)
        found[:, of_answer] = weights[:, n_prompt:]
        return found.reshape(len(weights), *shape)

    return graph


def prim_length(weights: Graphs, n_added: Int[np.ndarray, "graph"]) -> Float[np.ndarray, "head graph"]:
    """Length of the minimum spanning trees of many graphs, grown from node 0 by Prim's method.

    Args:
        weights: Closeness in [0, 1] of each node to the nodes before it, zero elsewhere; two
            nodes are ``1 - closeness`` apart.
        n_added: Nodes ``1 … n_added`` of each graph count; falling from graph to graph.
    """
    n_heads, n_graphs, n_nodes = weights.shape[:3]
    is_node = (np.arange(n_nodes) <= n_added[:, None]) & (np.arange(n_nodes) > 0)
    # closeness of what is not in the tree to the nearest node that is; -1 inside it
    closeness = np.where(is_node, weights[..., 0], -1.0)
    total = np.zeros((n_heads, n_graphs))
    head, graph = np.arange(n_heads)[:, None], np.arange(n_graphs)
    for step in range(n_nodes - 1):
        # the graphs that still grow lie in front
        n = np.count_nonzero(n_added > step)
        near = closeness[:, :n]
        nearest = near.argmax(axis=-1)
        total[:, :n] += 1.0 - near[head, graph[:n], nearest]
        near[head, graph[:n], nearest] = -1.0
        reached = weights[head, graph[:n], nearest]
        np.maximum(reached, weights[head, graph[:n], :, nearest], out=reached)
        np.maximum(near, reached, out=near, where=near >= 0)
    return total
