"""One teacher-forced pass over prompt and answer, from which everything stored is taken.

During generation with a cache the last step holds one query row only, and beams are reordered
under way; the pass over the final sequence has every row of the final answer. Sequences of a
batch are padded on the right: causal rows never see the padding, and it is cut off afterwards.
A prompt that is run alone, before its answers, ends where the others of its batch do, and is padded
on the left.

Every chunk of attention rows (in float32) that passes by is reduced at once, and what is kept of a
whole batch lies padded in main memory, in the stored number format; afterwards the arrays of one
trace are cut out without padding. The keys of a chunk end at its last row or behind it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers.cache_utils import Cache

from graphhalu.core.axes import N_SPANS, RowRange
from graphhalu.extract.capture import capturing
from graphhalu.extract.decode import GrowingLayer, PromptPass, joined_cache
from graphhalu.extract.forward import (
    STATISTICS,
    DeferredPass,
    Replayed,
    TokenSequence,
    body_below_head,
    option_logprobs,
    read_likelihood,
    token_statistics,
)
from graphhalu.traces.schema import ARRAYS, FIXED_STEPS, N_SINK_KEYS, RAGGED_AXES, TraceShape, n_pairs

_TINY: Final = torch.finfo(torch.float32).tiny
_PACKED: Final = ("attention", "attention_fixed")
_KEY_POSITIONS: Final = {"argmax_key", "edge_key"}


Chunk = Float[Tensor, "trace head row key"]


def _span_mass(recorder: "AttentionRecorder", _row_start: int, weights: Chunk) -> tuple[Tensor]:
    """Attention of a row summed over each named span."""
    return (weights @ recorder.is_span.to(weights.device)[:, :, : weights.shape[-1]],)


def _self_attention(_recorder: "AttentionRecorder", row_start: int, weights: Chunk) -> tuple[Tensor]:
    """Attention of a row to its own token: the diagonal of the chunk."""
    return (weights.diagonal(offset=row_start, dim1=2, dim2=3),)


def _row_entropy(_recorder: "AttentionRecorder", _row_start: int, weights: Chunk) -> tuple[Tensor]:
    """Entropy of a row in nat; a weight of 0 adds nothing."""
    # a weight of 0 times a finite logarithm is 0; torch.special.entr takes three times as long
    return (-(weights * weights.clamp_min(_TINY).log_()).sum(-1),)


def _argmax_key(_recorder: "AttentionRecorder", _row_start: int, weights: Chunk) -> tuple[Tensor]:
    """Key position of a row's largest weight; the first of equals."""
    return (weights.argmax(-1),)


def _sink_keys(recorder: "AttentionRecorder", _row_start: int, weights: Chunk) -> tuple[Tensor]:
    """Attention of a row to each of the first tokens; zeros beyond the end of a short sequence."""
    kept = [
        row[..., each.padding : each.padding + N_SINK_KEYS]
        for row, each in zip(weights, recorder.sequences, strict=True)
    ]
    pad = nn.functional.pad
    return (torch.stack([pad(first, (0, N_SINK_KEYS - first.shape[-1])) for first in kept]),)


def _edges(
    recorder: "AttentionRecorder", row_start: int, weights: Chunk
) -> tuple[Int[Tensor, "trace head row edge"], Float[Tensor, "trace head row edge"], Tensor]:
    """The strongest keys of a row other than its own token, and the mass of all others.

    The first ``n_edges`` of the store's shape; with ``edge_mass`` a row ends before that once
    the kept share of its attention to other tokens reaches it. A place without an edge has key
    -1 and weight 0. Own attention, edges and dropped mass add up to the row.
    """
    others = weights.clone()
    others.diagonal(offset=row_start, dim1=2, dim2=3).zero_()
    total = others.sum(-1)
    n_edges = recorder.shape.n_edges
    found = others.topk(min(n_edges, others.shape[-1]), dim=-1)
    is_edge = found.values > 0
    if recorder.edge_mass is not None:
        before = found.values.cumsum(-1) - found.values
        is_edge &= before < recorder.edge_mass * total[..., None]
    weight = found.values * is_edge
    missing = (0, n_edges - weight.shape[-1])
    key = nn.functional.pad(found.indices.where(is_edge, -1), missing, value=-1)
    dropped = (total - weight.sum(-1)).clamp(min=0)
    return key, nn.functional.pad(weight, missing), dropped


Reduction = Callable[["AttentionRecorder", int, Chunk], tuple[Tensor, ...]]

_REDUCTIONS: Final[dict[tuple[str, ...], Reduction]] = {
    ("span_mass",): _span_mass,
    ("self_attention",): _self_attention,
    ("row_entropy",): _row_entropy,
    ("argmax_key",): _argmax_key,
    ("sink_keys",): _sink_keys,
    ("edge_key", "edge_weight", "dropped_mass"): _edges,
}
"""Arrays with one value, or one short vector, a row, and how a chunk of rows is reduced to them."""


class AttentionRecorder:
    """Keeps what a store keeps of the attention of one batch; the observer of its replay.

    Args:
        sequences: Prompt and answer of each trace, and the first query row that is kept of it;
            they are padded on the right to a common length, behind the padding of their own.
        shape: Which layers are kept.
        arrays: Names of the arrays to keep; those that do not come from attention are passed over.
        device: Where the model is.
        edge_mass: Share of a row after which no more of its edges are kept, or ``None``.
    """

    def __init__(
        self,
        sequences: Sequence[TokenSequence],
        shape: TraceShape,
        arrays: tuple[str, ...],
        *,
        device: torch.device,
        edge_mass: float | None = None,
    ) -> None:
        self.sequences, self.shape, self.device, self.edge_mass = tuple(sequences), shape, device, edge_mass
        # from the first row that any sequence keeps to the last token of the longest
        first = min(each.padding + each.row_start for each in sequences)
        self.span_of_rows = RowRange(first, max(each.padding + each.length for each in sequences))
        n_rows = self.span_of_rows.stop - first
        self._reductions = {n: reduce for n, reduce in _REDUCTIONS.items() if {*n} & {*arrays}}
        per_row = [name for names in self._reductions for name in names]
        per_key = [name for name in ("received", "value_norm") if name in arrays]
        self._rows = {name: self._empty(name, n_rows) for name in per_row}
        self._keys = {name: self._empty(name, self.span_of_rows.stop) for name in per_key}
        self._packed = {name: self._empty_packed(name) for name in _PACKED if name in arrays}
        self._n_rows_seen = dict.fromkeys(shape.attention_layers, 0)
        self._layers_with_values: set[int] = set()
        self._bad_layers: dict[int, int] = {}

    @cached_property
    def token_ids(self) -> Int[Tensor, "trace token"]:
        """Vocabulary indices."""
        return self._padded([sequence.token_ids for sequence in self.sequences])

    @cached_property
    def is_token(self) -> Bool[Tensor, "trace token"]:
        """Which positions are tokens and not padding."""
        return self._padded([np.ones_like(each.token_ids) for each in self.sequences]).bool()

    @cached_property
    def is_span(self) -> Float[Tensor, "trace 1 token span"]:
        """Membership of each token in each span."""
        codes = self._padded([sequence.span_code for sequence in self.sequences])
        return nn.functional.one_hot(codes, N_SPANS).float()[:, None]

    @cached_property
    def is_kept_row(self) -> Float[Tensor, "trace token"]:
        """1 for each row that its sequence keeps, 0 for others and for padding."""
        is_kept = [np.arange(each.length) >= each.row_start for each in self.sequences]
        return self._padded(is_kept).float()

    @cached_property
    def positions(self) -> Int[Tensor, "trace token"]:
        """Place of each token in its sequence."""
        return (self.is_token.long().cumsum(1) - 1).clamp(min=0)

    def _padded(self, values: list[Shaped[np.ndarray, "_"]]) -> Int[Tensor, "trace token"]:
        padded = np.zeros((len(values), self.span_of_rows.stop), dtype=np.int64)
        for own, each, sequence in zip(padded, values, self.sequences, strict=True):
            own[sequence.padding : sequence.padding + len(each)] = each
        return torch.from_numpy(padded).to(self.device)

    def wanted_rows(self, layer: int) -> RowRange | None:
        """The rows from the first that any sequence keeps, of the layers that are kept."""
        is_kept = layer in self._n_rows_seen and self._keeps_rows
        return self.span_of_rows if is_kept else None

    def rows(self, layer: int, row_start: int, weights: Chunk) -> None:
        """Reduce a chunk of rows and keep the results; note traces that are not finite."""
        exact = weights.float()
        self._note_bad_rows(layer, row_start, exact)
        position = self.shape.attention_layers.index(layer)
        first = row_start - self.span_of_rows.start
        stop = row_start + exact.shape[2]
        for names, reduce in self._reductions.items():
            for name, values in zip(names, reduce(self, row_start, exact), strict=True):
                self._rows[name][position, :, :, first : first + exact.shape[2]] = values
        if "received" in self._keys:
            is_kept = self.is_kept_row.to(exact.device)[:, None, None, row_start:stop]
            sums = (is_kept @ exact)[:, :, 0]
            self._keys["received"][position, ..., : sums.shape[-1]] += sums.cpu()
        for name, packed in self._packed.items():
            self._pack([each[position] for each in packed], row_start, _stored(exact, name))
        self._n_rows_seen[layer] += exact.shape[2]

    def values(self, layer: int, value: Float[Tensor, "trace kv_head key channel"]) -> None:
        """Keep the Euclidean norm of each value vector."""
        if "value_norm" not in self._keys or layer not in self._n_rows_seen:
            return
        kept = self._keys["value_norm"]
        norms = value.float().norm(dim=-1)
        assert norms.shape[1] == kept.shape[2], f"{norms.shape[1]} heads of values"
        kept[self.shape.attention_layers.index(layer)] = norms
        self._layers_with_values.add(layer)

    def require_complete(self) -> None:
        """Every layer has shown every wanted row: what was not would be stored as noise."""
        expected = self.span_of_rows.stop - self.span_of_rows.start if self._keeps_rows else 0
        for layer, n_rows in self._n_rows_seen.items():
            assert n_rows == expected, f"layer {layer} showed {n_rows} of {expected} rows"
        if "value_norm" in self._keys:
            missing = self._n_rows_seen.keys() - self._layers_with_values
            assert not missing, f"layers {missing} showed no values"

    def failure(self, index: int) -> str | None:
        """Why a trace failed, if its attention is not finite; names the first such layer."""
        if index not in self._bad_layers:
            return None
        return f"the attention of layer {self._bad_layers[index]} holds NaN or infinity"

    def trace_arrays(self, index: int) -> dict[str, np.ndarray]:
        """Every recorded array of one trace, without padding."""
        sequence = self.sequences[index]
        keys = slice(sequence.padding, sequence.padding + sequence.length)
        first = sequence.padding - self.span_of_rows.start
        rows = slice(first + sequence.row_start, first + sequence.length)
        cut = {name: kept[:, index, :, rows] for name, kept in self._rows.items()}
        cut |= {name: kept[:, index, :, keys] for name, kept in self._keys.items()}
        arrays = {name: np.ascontiguousarray(values.numpy()) for name, values in cut.items()}
        for name in _KEY_POSITIONS & arrays.keys() if sequence.padding else ():
            arrays[name] = np.where(arrays[name] >= 0, arrays[name] - sequence.padding, -1)
        return arrays | {name: packed[index] for name, packed in self._packed.items()}

    @property
    def _keeps_rows(self) -> bool:
        return bool(self._rows or self._packed or "received" in self._keys)

    def _sizes(self, name: str) -> list[int]:
        """Lengths of the fixed axes of an array."""
        axes = (axis for axis in ARRAYS[name].axes if axis not in RAGGED_AXES)
        return [self.shape.axis_size(axis) for axis in axes]

    def _empty(self, name: str, n_places: int) -> Shaped[Tensor, "layer trace ..."]:
        """``[layer, trace, head, row or key, …]`` of zeros in the stored number format."""
        n_layers, n_heads, *trailing = self._sizes(name)
        shape = (n_layers, len(self.sequences), n_heads, n_places, *trailing)
        return torch.from_numpy(np.zeros(shape, dtype=ARRAYS[name].dtype))

    def _empty_packed(self, name: str) -> list[Shaped[np.ndarray, "layer head _"]]:
        sizes, dtype = self._sizes(name), ARRAYS[name].dtype
        n_weights = [n_pairs(each.length, each.row_start) for each in self.sequences]
        return [np.empty((*sizes, n), dtype=dtype) for n in n_weights]

    def _pack(
        self,
        packed: list[Shaped[np.ndarray, "head _"]],
        row_start: int,
        stored: Shaped[np.ndarray, "trace head row key"],
    ) -> None:
        """Put the causal rows of every trace one after another; rows of padding are dropped."""
        for index, sequence in enumerate(self.sequences):
            chunk = row_start - sequence.padding
            start = max(chunk, sequence.row_start)
            begin = n_pairs(start) - n_pairs(sequence.row_start)
            own = stored[index, :, :, sequence.padding :]
            # one copy a row takes a seventh of the time of an index for each entry
            for row in range(start, min(chunk + stored.shape[2], sequence.length)):
                packed[index][:, begin : begin + row + 1] = own[:, row - chunk, : row + 1]
                begin += row + 1

    def _note_bad_rows(self, layer: int, row_start: int, weights: Chunk) -> None:
        if bool(torch.isfinite(weights.sum())):
            return
        for index, sequence in enumerate(self.sequences):
            first, stop = sequence.padding - row_start, sequence.padding + sequence.length - row_start
            rows = weights[index, :, max(0, first) : max(0, stop)]
            if not bool(torch.isfinite(rows).all()):
                self._bad_layers.setdefault(index, layer)


class Kept(NamedTuple):
    """What is kept of a pass.

    Attributes:
        shape: Which layers and hidden states.
        arrays: Names of the arrays.
        edge_mass: Share of a row after which no more of its edges are kept.
        row_chunk: Query rows whose attention exists at a time; by default as many as fit a few
            megabytes.
    """

    shape: TraceShape
    arrays: tuple[str, ...]
    edge_mass: float | None = None
    row_chunk: int | None = None


class Prefix(NamedTuple):
    """Tokens that have run already.

    Attributes:
        length: How many positions of the batch.
        cache: Their keys and values; those of further tokens are added to it.
    """

    length: int
    cache: Cache


def _stored(weights: Chunk, name: str) -> Shaped[np.ndarray, "trace head row key"]:
    """Whole weights in the number format of an array."""
    if name == "attention":
        return np.asarray(weights.to(torch.float16).cpu().numpy())
    # NaN is told as a failure of its trace
    steps = weights.nan_to_num(0.0).mul(FIXED_STEPS).round_().clamp_(0, FIXED_STEPS)
    return np.asarray(steps.to(torch.int32).cpu().numpy()).astype(np.uint16)


@torch.inference_mode()
def replay(model: Any, sequences: Sequence[TokenSequence], kept: Kept) -> list[Replayed]:
    """Run the sequences through the model once.

    Args:
        model: A causal language model.
        sequences: One batch; its longest sequence sets the width.
        kept: What is kept of each.

    Returns:
        One result a sequence, in order. A sequence on which the model gives NaN or infinity
        has a failure that names the first such layer, and the others are not touched by it.
    """
    return _recorded(model, sequences, kept)[1]


@torch.inference_mode()
def prefill(model: Any, prompts: Sequence[TokenSequence], kept: Kept) -> list[PromptPass]:
    """Run prompts once for all that comes behind them: the search of their answers, and the replay.

    Args:
        model: A causal language model whose decoding can be shared
            (:func:`graphhalu.extract.generate.shared_decoding_fault`).
        prompts: One batch, without answers.
        kept: What is kept of each.

    Returns:
        One pass a prompt, in order.
    """
    width = max(each.length for each in prompts)
    padded = [replace(each, option_ids=(), padding=width - each.length) for each in prompts]
    cache = Cache(layer_class_to_replicate=GrowingLayer)
    done, results = _recorded(model, padded, kept, Prefix(0, cache))
    logits = done.logits(width - 1, width)[:, 0]
    return [
        PromptPass(
            result,
            tuple((layer.keys[index, :, start:], layer.values[index, :, start:]) for layer in cache.layers),
            logits[index],
        )
        for index, (result, start) in enumerate(zip(results, (p.padding for p in padded), strict=True))
    ]


@torch.inference_mode()
def replay_behind(
    model: Any, passes: Sequence[PromptPass], sequences: Sequence[TokenSequence], kept: Kept
) -> list[Replayed]:
    """As :func:`replay`, for answers whose prompts have run: only their own tokens do.

    Args:
        model: As of :func:`prefill`.
        passes: The pass of each sequence's prompt, of which the same is kept.
        sequences: Prompts with answers.
        kept: What is kept of each.
    """
    width = max(each.prompt_length for each in sequences)
    tails = [
        replace(each, row_start=each.prompt_length, padding=width - each.prompt_length) for each in sequences
    ]
    _, results = _recorded(model, tails, kept, Prefix(width, joined_cache(passes)))
    logits = torch.stack([each.logits for each in passes])
    first_ids = torch.tensor([each.token_ids[each.prompt_length] for each in sequences], device=logits.device)
    first = token_statistics(logits, first_ids).cpu().numpy().T
    found = []
    for done, sequence, result, statistics in zip(passes, sequences, results, first, strict=True):
        failure = done.result.failure or result.failure
        if failure is not None:
            found.append(Replayed({}, failure))
            continue
        options = option_logprobs(done.logits, sequence.option_ids) if sequence.option_ids else ()
        found.append(Replayed(_joined(done.result.arrays, result.arrays, statistics), None, options))
    return found


def _joined(
    prompt: Mapping[str, np.ndarray], answer: Mapping[str, np.ndarray], first: Float[np.ndarray, "statistic"]
) -> dict[str, np.ndarray]:
    """Arrays of prompt and answer from those of either; ``first`` is of the first answer token."""
    joined = {}
    for name, values in answer.items():
        before, spec = prompt[name], ARRAYS[name]
        if name in ("token_ids", "span_code", "value_norm"):  # whole already
            joined[name] = values
        elif name in STATISTICS:
            length = len(before)
            joined[name] = np.concatenate([before, [first[STATISTICS.index(name)]], values[length + 1 :]])
            joined[name] = joined[name].astype(spec.dtype)
        elif name == "received":
            joined[name] = values.copy()
            joined[name][..., : before.shape[-1]] += before
        else:
            joined[name] = np.concatenate([before, values], axis=spec.ragged_dim)
    return joined


def _recorded(
    model: Any, sequences: Sequence[TokenSequence], kept: Kept, behind: Prefix | None = None
) -> tuple[DeferredPass, list[Replayed]]:
    """A pass over the tokens behind a prefix, or over all."""
    first = 0 if behind is None else behind.length
    device = next(model.parameters()).device
    shape, arrays = kept.shape, kept.arrays
    recorder = AttentionRecorder(sequences, shape, arrays, device=device, edge_mass=kept.edge_mass)
    keeps_hidden = not {"hidden", "hidden_rows"}.isdisjoint(arrays)
    # found by a pass of its own, whose attention must not be recorded
    body = body_below_head(model)
    with capturing(model, recorder, row_chunk=kept.row_chunk):
        done = DeferredPass(
            model,
            body,
            first,
            input_ids=recorder.token_ids[:, first:],
            attention_mask=recorder.is_token.long(),
            position_ids=recorder.positions[:, first:],
            output_hidden_states=list(shape.hidden_layers) if keeps_hidden else False,
            use_cache=behind is not None,
            **({} if behind is None else {"past_key_values": behind.cache}),
        )
    recorder.require_complete()
    hidden, bad_layers = _hidden_arrays(done.take_hidden_states(), arrays, shape, sequences, first)
    results = []
    for index, (sequence, likely) in enumerate(zip(sequences, read_likelihood(done, sequences), strict=True)):
        failure = recorder.failure(index) or likely.failure
        if index in bad_layers:
            failure = f"the hidden states after layer {bad_layers[index]} hold NaN or infinity"
        if failure is not None:
            results.append(Replayed({}, failure))
            continue
        found: dict[str, np.ndarray] = {
            "token_ids": sequence.token_ids.astype(np.int32),
            "span_code": sequence.span_code.astype(np.uint8),
            **likely.arrays,
            **recorder.trace_arrays(index),
            **hidden[index],
        }
        results.append(likely._replace(arrays={name: found[name] for name in arrays if name in found}))
    return done, results


def _hidden_arrays(
    states: list[Tensor | None] | None,
    arrays: Sequence[str],
    shape: TraceShape,
    sequences: Sequence[TokenSequence],
    first: int,
) -> tuple[list[dict[str, np.ndarray]], dict[int, int]]:
    """The kept hidden states of a batch, as bfloat16 bits.

    Args:
        states: What the model gave for each of its hidden states; emptied while it is read, so
            that float32 and bfloat16 of all layers never exist together. ``None`` keeps nothing.
        arrays: Names of the arrays to keep: ``hidden`` has all tokens, ``hidden_rows`` those of
            the kept rows; others are passed over.
        shape: Which hidden states are kept.
        sequences: The batch.
        first: Position of the first token of the states.

    Returns:
        The arrays of each sequence, and the first layer that is not finite by sequence.
    """
    kept: list[dict[str, np.ndarray]] = [{} for _ in sequences]
    bad_layers: dict[int, int] = {}
    if states is None:
        return kept, bad_layers
    n_layers, n_features = len(shape.hidden_layers), shape.hidden_size
    for own, sequence in zip(kept, sequences, strict=True):
        starts = {"hidden": max(0, first - sequence.padding), "hidden_rows": sequence.row_start}
        for name, start in starts.items():
            if name in arrays:
                n_tokens = sequence.length - start
                own[name] = np.empty((n_layers, n_tokens, n_features), dtype=np.uint16)
    for place, layer in enumerate(shape.hidden_layers):
        state, states[layer] = states[layer], None
        assert state is not None, f"the model gave no hidden states of layer {layer}"
        for index, sequence in enumerate(sequences):
            for packed in kept[index].values():
                stop = sequence.padding + sequence.length - first
                tokens = state[index, stop - packed.shape[1] : stop]
                # the sum is cheap and catches all but an overflow of the sum itself
                if not (torch.isfinite(tokens.sum()) or torch.isfinite(tokens).all()):
                    bad_layers.setdefault(index, layer)
                packed[place] = tokens.to(torch.bfloat16).view(torch.uint16).cpu().numpy()
    return kept, bad_layers
