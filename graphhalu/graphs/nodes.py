"""Layers of several traces as node features of token graphs, in named blocks.

A block is a function of a :class:`LayerBlock`; one line in ``NODE_BLOCKS`` adds one. Where a value
cannot exist (a row that cannot see, a token without one before it) it is 0 and the block's column
``is_missing`` is 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Shaped

from graphhalu.core.axes import N_SPANS, SPAN_NAMES, Span
from graphhalu.core.errors import NonFiniteError, UsageError
from graphhalu.core.registry import unknown_name
from graphhalu.features.block import TraceBlock
from graphhalu.features.instability import bounded_std, head_std
from graphhalu.features.matrices import state_axis
from graphhalu.graphs.edges import HeadRoles
from graphhalu.traces.schema import N_SINK_KEYS, from_bfloat16_bits, from_fixed_point
from graphhalu.traces.trace import attention_kept, layer_position

SELF_ATTENTION_FLOOR: Final = 1e-6
"""Attention to the own token is kept from 0 before its logarithm."""
_LATE_SPANS: Final = {"question": (Span.CONTEXT, Span.QUESTION), "answer": (Span.ANSWER,)}


@dataclass(frozen=True)
class LayerBlock:
    """Some model layers of the traces of a block.

    Attributes:
        block: Traces that keep all rows, or those that produce their answers.
        layers: Model layers.
        roles: Weights of heads, for the node block ``roles``.
    """

    block: TraceBlock
    layers: tuple[int, ...]
    roles: HeadRoles | None = None

    @cached_property
    def positions(self) -> list[int]:
        """Entries of the layer axis that hold these layers.

        Raises:
            TraceNotFoundError: If a layer is not kept.
        """
        kept = self.block.shape.attention_layers
        return [layer_position(layer, kept, "attention of layer") for layer in self.layers]

    @property
    def has_only_edges(self) -> bool:
        """Whether only the strongest edges are kept."""
        return attention_kept(self.block.arrays.names()) == "edges"

    def stream(self, name: str) -> Float32[np.ndarray, "layer ..."]:
        """A row statistic in float32.

        Raises:
            TraceNotFoundError: If the traces do not keep it.
        """
        return to_float32(self.block.raw(name)[self.positions])

    def attention(self) -> Shaped[np.ndarray, "layer head pair"]:
        """Attention, triangles one after another, in half or single precision.

        Raises:
            TraceNotFoundError: If the traces do not keep it.
        """
        if not self.block.has("attention") and self.block.has("attention_fixed"):
            return from_fixed_point(self._matrix("attention_fixed", self.positions))
        return self._matrix("attention", self.positions)

    def hidden(self) -> Float32[np.ndarray, "layer token feature"]:
        """Hidden states that the layers leave: ``hidden[layer + 1]``.

        Where the store keeps those of its rows only, other tokens have 0.

        Raises:
            TraceNotFoundError: If the traces do not keep one of them.
        """
        return self.states(state_axis(self.block)[0])

    def states(self, name: str) -> Float32[np.ndarray, "layer token feature"]:
        """As :meth:`hidden`, from the array of this name."""
        kept = self.block.shape.hidden_layers
        positions = [layer_position(layer + 1, kept, "hidden states of layer") for layer in self.layers]
        values = from_bfloat16_bits(self._matrix(name, positions))
        return self.on_tokens(values.swapaxes(1, 2)).swapaxes(1, 2)

    def on_tokens(self, values: Shaped[np.ndarray, "*axes row"]) -> Shaped[np.ndarray, "*axes token"]:
        """Values of the stored rows at their tokens, 0 at tokens whose row is not stored."""
        block = self.block
        n_tokens = int(block.tokens.offsets[-1])
        if values.shape[-1] == n_tokens:
            return values
        spread = np.zeros((*values.shape[:-1], n_tokens), dtype=values.dtype)
        spread[..., block.tokens.offsets[block.rows.trace] + block.row_token] = values
        return spread

    @property
    def is_unstored(self) -> Bool[np.ndarray, "token"]:
        """Tokens whose row is not stored."""
        kept = np.ones(len(self.block.row_token), dtype=np.float32)
        return self.on_tokens(kept) == 0

    def _matrix(self, name: str, positions: Sequence[int]) -> np.ndarray:
        # a matrix is stored layer by layer, so only the layers asked for are decoded
        return np.stack([self.block.stored(name, position) for position in positions])


class NodeBlock(NamedTuple):
    """Features of every token, and what each column is.

    Attributes:
        values: One entry on the first axis if they are the same for all layers.
        names: Columns.
        is_of_layer: Whether each layer has values of its own.
    """

    values: Float[np.ndarray, "layer token feature"]
    names: tuple[str, ...]
    is_of_layer: bool = True


BlockFunction = Callable[[LayerBlock], NodeBlock]


def node_features(source: LayerBlock, blocks: Sequence[str], *, is_multiplex: bool = False) -> NodeBlock:
    """The columns of several blocks side by side, in float32, named ``block.column``.

    Args:
        source: Keeps what the blocks read.
        blocks: Names in ``NODE_BLOCKS``.
        is_multiplex: Whether the columns of all layers stand side by side too, named
            ``layerL.block.column``, after those that are the same for all layers.

    Raises:
        UsageError: If no block is named.
        UnknownNameError: If a name is in no table; lists the known ones.
        TraceNotFoundError: If the traces do not keep what a block reads.
        NonFiniteError: If a block yields NaN or infinity; names it.
    """
    if not blocks:
        raise UsageError(f"a graph needs at least one block of node features: {', '.join(NODE_BLOCKS)}")
    check_blocks(blocks)
    named = [(name, _block(source, name)) for name in blocks]
    if len(source.block.row_token) < int(source.block.tokens.offsets[-1]):
        named.append(("row", row_block(source)))
    found = [_checked(source, name, block) for name, block in named]
    if not is_multiplex:
        return NodeBlock(np.concatenate([each.values for each in found], axis=-1), _columns(found))
    # what is the same for all layers stands once, before what each layer has of its own
    shared = [each for each in found if not each.is_of_layer]
    own = [each for each in found if each.is_of_layer]
    by_layer = [each.values[place] for place in range(len(source.layers)) for each in own]
    values = np.concatenate([*(each.values[0] for each in shared), *by_layer], axis=-1)[None]
    of_layers = [f"layer{layer}.{name}" for layer in source.layers for name in _columns(own)]
    return NodeBlock(values, (*_columns(shared), *of_layers))


def check_blocks(blocks: Sequence[str]) -> None:
    """Refuse names that are in no table; ``hidden@LAYER`` and ``shift@LAYER`` are known for every layer.

    Raises:
        UnknownNameError: Lists the known ones.
    """
    for name in blocks:
        kind, _, layer = name.partition("@")
        if name not in NODE_BLOCKS and not (kind in WIDE and layer.isdecimal()):
            known = [*NODE_BLOCKS, *(f"{name}@LAYER" for name in WIDE)]
            raise unknown_name("block of node features", name, known)


def hidden_block(source: LayerBlock) -> NodeBlock:
    """Hidden state that the layer leaves: ``hidden[layer + 1]``."""
    values = source.hidden()
    return NodeBlock(values, tuple(f"unit{unit}" for unit in range(values.shape[-1])))


def row_block(source: LayerBlock) -> NodeBlock:
    """Whether the store keeps no attention row of a token, so that what is read there is 0."""
    missing = source.is_unstored.astype(np.float32)[None, :, None]
    return NodeBlock(missing, ("is_missing",), is_of_layer=False)


def position_block(source: LayerBlock) -> NodeBlock:
    """Place of a token: in the sequence and from the last prompt token, as shares of the length."""
    block = source.block
    token = block.tokens.position
    length = block.of_record("length")[block.tokens.trace]
    prompt_length = block.of_record("prompt_length")[block.tokens.trace]
    columns = (
        token / (length - 1),
        block.is_answer_token,
        (token - (prompt_length - 1)) / length,
        np.log(length),
    )
    names = ("relative", "is_answer", "from_prompt_end", "log_length")
    return NodeBlock(np.stack(columns, axis=1)[None].astype(np.float64), names, is_of_layer=False)


def span_block(source: LayerBlock) -> NodeBlock:
    """One column a named span, 1 for its tokens."""
    is_span = np.eye(N_SPANS, dtype=np.float32)[source.block.stream("span_code")]
    return NodeBlock(is_span[None], SPAN_NAMES, is_of_layer=False)


def sink_block(source: LayerBlock) -> NodeBlock:
    """What a token receives from the rows that can see it, and what it pays to the sink, a head.

    ``received_headH`` is the mean attention to this key over the rows that can see it, in
    [0, 1]; ``paid_headH`` is the attention of this row to the first four tokens, in [0, 1]. Rows
    of the sink itself and rows that no longer see all of it pay nothing that says anything.
    """
    received = _received(source)
    paid, is_defined = (source.on_tokens(values) for values in _paid_to_sink(source))
    names = (*_head_names("received", received.shape[1]), *_head_names("paid", paid.shape[1]))
    values = np.concatenate([received, paid, ~is_defined[:, None]], axis=1)
    return NodeBlock(values.transpose(0, 2, 1), (*names, "is_missing"))


def instability_block(source: LayerBlock) -> NodeBlock:
    """Disagreement of the heads on the sink share of a row: its std, and std over its bound."""
    share, is_defined = _paid_to_sink(source)
    bounded = bounded_std(share)
    is_missing = ~is_defined | np.isnan(bounded)
    columns = (head_std(share), np.where(is_missing, 0.0, bounded), is_missing)
    values = np.stack([source.on_tokens(column.astype(np.float32)) for column in columns], axis=-1)
    return NodeBlock(values, ("head_std", "bounded_std", "is_missing"))


def roles_block(source: LayerBlock) -> NodeBlock:
    """What the heads of a role do at a token: weighted means over the heads of the layer.

    ``received_ROLE`` is what the token receives from the rows that can see it,
    ``to_question_ROLE`` what its row pays to question and context, ``to_answer_ROLE`` what it
    pays to the answer; all in [0, 1]. A layer where no head has the role has none of them.
    """
    assert source.roles is not None  # a recipe with this block has weights of heads
    weights = source.roles.share(source.layers)
    mass = source.stream("span_mass")
    streams = {"received": _received(source)}
    for name, spans in _LATE_SPANS.items():
        streams[f"to_{name}"] = source.on_tokens(mass[..., list(spans)].sum(-1))
    of_role = [np.einsum("lht,lhr->ltr", values, weights) for values in streams.values()]
    is_missing = np.broadcast_to((weights.sum(1) == 0)[:, None], of_role[0].shape)
    names = tuple(f"{what}_{role}" for what in (*streams, "is_missing") for role in source.roles.names)
    return NodeBlock(np.concatenate([*of_role, is_missing], axis=-1), names)


def self_attention_block(source: LayerBlock) -> NodeBlock:
    """Logarithm of a token's attention to itself, a head: ``log(max(a, 1e-6))``."""
    own = source.on_tokens(source.stream("self_attention"))
    values = np.log(np.maximum(own, np.float32(SELF_ATTENTION_FLOOR)))
    return NodeBlock(values.transpose(0, 2, 1), _head_names("log", own.shape[1]))


def diagonal_block(source: LayerBlock) -> NodeBlock:
    """A token's attention to itself, a head, as it is."""
    own = source.on_tokens(source.stream("self_attention"))
    return NodeBlock(own.transpose(0, 2, 1), tuple(f"head{head}" for head in range(own.shape[1])))


def entropy_block(source: LayerBlock) -> NodeBlock:
    """Entropy of a row over its largest value, a head: ``entropy / log(keys that it can see)``.

    A row that sees one key has no entropy to share.
    """
    entropy = source.stream("row_entropy")
    largest = np.log(source.block.n_visible[source.positions].astype(np.float32))[:, None]
    is_missing = largest == 0
    shares = np.where(is_missing, 0.0, entropy / np.where(is_missing, 1.0, largest))
    values = np.concatenate([shares, is_missing], axis=1)
    values = source.on_tokens(values).transpose(0, 2, 1)
    return NodeBlock(values, (*_head_names("relative", entropy.shape[1]), "is_missing"))


def shift_block(source: LayerBlock) -> NodeBlock:
    """Hidden state that the layer leaves minus the one without the context; 0 where none was compared."""
    other = source.states("contrast_hidden")
    is_compared = np.isfinite(other) & ~source.is_unstored[None, :, None]
    values = np.where(is_compared, source.hidden() - np.where(is_compared, other, 0), 0)
    return NodeBlock(values, tuple(f"unit{unit}" for unit in range(values.shape[-1])))


def contrast_block(source: LayerBlock) -> NodeBlock:
    """What the context does to a token of the answer, and how late it is decided.

    ``drop`` is the log-probability (nat) with the context minus without, ``entropy`` that of the output
    without, ``output_shift`` the distance of the two outputs; ``rankL`` is ``log(1 + rank)`` of the token
    in hidden states ``L``, read through the output head.
    """
    block = source.block
    without = block.stream("contrast_logprob")
    columns = [
        block.stream("token_logprob") - without,
        block.stream("contrast_entropy"),
        block.stream("output_shift"),
        *np.log1p(np.maximum(block.stream("lens_rank"), 0)),  # -1 in the prompt
    ]
    is_missing = np.isnan(without)
    values = [np.where(np.isfinite(column), column, 0) for column in columns]
    ranks = tuple(f"rank{layer}" for layer in block.shape.hidden_layers)
    names = ("drop", "entropy", "output_shift", *ranks, "is_missing")
    return NodeBlock(np.stack([*values, is_missing], axis=1)[None], names, is_of_layer=False)


def overlap_block(source: LayerBlock) -> NodeBlock:
    """Whether an answer token, it with the one before, and it with the two before are in the prompt."""
    block = source.block
    ids, bounds = block.stream("token_ids"), block.tokens.offsets.tolist()
    values = np.zeros((len(ids), 3))
    for record, start, stop in zip(block.records, bounds, bounds[1:], strict=False):
        found = runs_in_prompt(ids[start:stop].tolist(), record.prompt_length)
        values[start + record.prompt_length : stop] = found
    return NodeBlock(values[None], ("one", "two", "three"), is_of_layer=False)


def runs_in_prompt(token_ids: Sequence[int], prompt_length: int) -> Float[np.ndarray, "token 3"]:
    """1 where the run of one, two or three tokens that ends at an answer token is in the prompt."""
    columns = []
    for size in (1, 2, 3):
        seen = {tuple(token_ids[at : at + size]) for at in range(prompt_length - size + 1)}
        ends = range(prompt_length + 1, len(token_ids) + 1)
        columns.append([float(tuple(token_ids[max(0, end - size) : end]) in seen) for end in ends])
    return np.array(columns).T


def heads_block(source: LayerBlock) -> NodeBlock:
    """What every head of every kept layer does in a row, whatever the layers of the graph.

    ``prompt`` is attention to the prompt without its first four tokens, ``answer`` to the answer, and
    ``entropy`` that of the row over its largest value.
    """
    every = replace(source, layers=source.block.shape.attention_layers)
    mass = every.stream("span_mass")
    answer, sink = mass[..., Span.ANSWER], every.stream("sink_keys")[..., :N_SINK_KEYS].sum(-1)
    entropy = entropy_block(every).values[..., :-1].transpose(0, 2, 1)
    parts = {"prompt": np.maximum(mass.sum(-1) - answer - sink, 0), "answer": answer}
    values = [*(every.on_tokens(part) for part in parts.values()), entropy]
    names = [
        f"{what}_layer{layer}_head{head}"
        for what in (*parts, "entropy")
        for layer in every.layers
        for head in range(mass.shape[1])
    ]
    columns = np.concatenate([part.reshape(-1, part.shape[-1]) for part in values]).T
    return NodeBlock(columns[None], tuple(names), is_of_layer=False)


def likelihood_block(source: LayerBlock) -> NodeBlock:
    """Log-probability, entropy and margin of a token; one whose row before is not stored says so."""
    streams = ("token_logprob", "token_entropy", "top1_margin")
    block = source.block
    is_missing = block.tokens.position <= block.of_record("row_start")[block.tokens.trace]
    columns = [np.where(is_missing, 0.0, block.stream(name)) for name in streams]
    values = np.stack([*columns, is_missing], axis=1)[None]
    return NodeBlock(values, ("logprob", "entropy", "margin", "is_missing"), is_of_layer=False)


NODE_BLOCKS: Final[dict[str, BlockFunction]] = {
    block.__name__.removesuffix("_block"): block
    for block in (
        *(hidden_block, position_block, span_block, sink_block, instability_block, roles_block),
        *(self_attention_block, diagonal_block, entropy_block, likelihood_block),
        *(heads_block, shift_block, contrast_block, overlap_block),
    )
}
"""Name of a block to the function that computes it."""
WIDE: Final[dict[str, BlockFunction]] = {"hidden": hidden_block, "shift": shift_block}
"""Blocks that ``NAME@LAYER`` reads of one layer, whatever the layers of the graph."""


def _block(source: LayerBlock, name: str) -> NodeBlock:
    if name in NODE_BLOCKS:
        return NODE_BLOCKS[name](source)
    kind, _, layer = name.partition("@")
    return WIDE[kind](replace(source, layers=(int(layer),)))._replace(is_of_layer=False)


def _paid_to_sink(
    source: LayerBlock,
) -> tuple[Float32[np.ndarray, "layer head row"], Bool[np.ndarray, "layer row"]]:
    """Share of each row that goes to the sink, 0 where that says nothing; and where it does."""
    keys = source.stream("sink_keys")[..., :N_SINK_KEYS]
    row_token, n_visible = source.block.row_token, source.block.n_visible[source.positions]
    # a row of the sink, or one that no longer sees all of it, says nothing
    is_defined = (row_token >= N_SINK_KEYS) & (n_visible > row_token)
    # half precision can bring a sum just above 1
    share = np.clip(np.einsum("lhrk->lhr", keys), 0.0, 1.0)
    return share * is_defined[:, None], is_defined


def _received(source: LayerBlock) -> Float32[np.ndarray, "layer head token"]:
    total = source.stream("received")
    n_rows = source.block.n_rows_that_see[source.positions].astype(np.float32)
    return total / n_rows[:, None]


def _head_names(what: str, n_heads: int) -> tuple[str, ...]:
    return tuple(f"{what}_head{head}" for head in range(n_heads))


def _checked(source: LayerBlock, name: str, block: NodeBlock) -> NodeBlock:
    """The block in float32, finite, seen from every layer, with columns named ``name.column``."""
    values = block.values.astype(np.float32, copy=False)
    names = tuple(f"{name}.{column}" for column in block.names)
    is_finite = np.isfinite(values)
    if not is_finite.all():
        place, token, column = np.argwhere(~is_finite)[0].tolist()
        record = source.block.records[int(source.block.tokens.trace[token])]
        raise NonFiniteError(
            f"trace {record.trace_id!r}, layer {source.layers[place]}: expected finite node features, "
            f"got {values[place, token, column]} in {names[column]} at token "
            f"{int(source.block.tokens.position[token])}\n"
            f"  Extract the trace again, or leave this block out"
        )
    wide = np.broadcast_to(values, (len(source.layers), *values.shape[1:]))
    return NodeBlock(wide, names, block.is_of_layer)


def _columns(blocks: Sequence[NodeBlock]) -> tuple[str, ...]:
    return tuple(name for block in blocks for name in block.names)


def to_float32(values: Shaped[np.ndarray, "*axes"]) -> Float32[np.ndarray, "*axes"]:
    """The same numbers in single precision; numpy converts half precision several times slower."""
    if values.dtype != np.float16:
        return values.astype(np.float32, copy=False)
    if not values.flags.writeable:  # torch warns of memory that it may not write to
        values = values.copy()
    return torch.from_numpy(values).float().numpy()
