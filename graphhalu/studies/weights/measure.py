"""Run-time quantities of heads and layers, taken from a trace store."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int

from graphhalu.core.errors import NotEnoughDataError, TraceNotFoundError, UsageError
from graphhalu.engine.executors import Progress, no_progress
from graphhalu.traces.trace import Trace
from graphhalu.weights.circuits import logit_variance, rotations
from graphhalu.weights.read import Part, Weights, repeat_heads
from graphhalu.weights.risk import Numbers

Inputs = Float[np.ndarray, "counted width"]
Outputs = tuple[np.ndarray, np.ndarray, np.ndarray, Inputs]
ByName = dict[str, Numbers]
Tokens = Float[np.ndarray, "token width"]
Matrices = Float[np.ndarray, "head size width"]
Attention = Float[np.ndarray, "head query token"]
Added = tuple[Tokens, Float[np.ndarray, "head query width"], Float[np.ndarray, "query width"]]
PerHead = Float[np.ndarray, "layer head"]

FIRST_ROW: Final = 16
"""First row whose entropy counts: earlier ones see too few keys."""
N_SINK: Final = 4
"""Tokens at the start that are left out of norms, and rows after which sinks count."""
_OF_HEADS: Final = ("head_output", "calibrated_variance")
_OF_LAYERS: Final = ("attention_output", "mlp_output", "output_ratio", "top_share")
_OFFSETS: Final = (0, 1, 4, 16)
_EPSILON: Final = 1e-6


@dataclass(frozen=True)
class Measured:
    """Run-time quantities; NaN where a store lacks their inputs.

    Attributes:
        heads: By name, one value a layer and head.
        kv_heads: By name, one value a layer and key head.
        layers: By name, one value a layer.
        n_traces: Traces that attention was measured on.
        n_output_traces: Traces that outputs were computed of.
        n_keys: Mean number of keys that the counted rows see.
        missing: Quantities that the store lacks, with the reason.
    """

    heads: Mapping[str, Numbers]
    kv_heads: Mapping[str, Numbers]
    layers: Mapping[str, Numbers]
    n_traces: int
    n_output_traces: int
    n_keys: float
    missing: Mapping[str, str]


def measure_store(
    traces: Sequence[Trace], weights: Weights, *, n_outputs: int = 64, on_progress: Progress = no_progress
) -> Measured:
    """Measure attention and values of all traces, and outputs of heads and blocks of some.

    The output of a head is computed again from the stored attention and hidden states with the
    model's weights; that of the feed-forward block is the rest of a layer's change, unknown for
    the last layer, whose output is stored after the final norm.

    Args:
        traces: Traces of the same model.
        weights: Its weights.
        n_outputs: Number of traces whose outputs are computed.
        on_progress: Called with the number of steps done, and of all.

    Raises:
        UsageError: If the traces are of a model of another shape.
        NotEnoughDataError: If no trace is long enough.
    """
    if not len(traces):
        raise NotEnoughDataError("there is no trace to validate against")
    shape, architecture, n_layers = traces[0].shape, weights.architecture, weights.architecture.n_layers
    sizes = ("n_layers", "n_heads", "n_kv_heads", "hidden_size")
    of_store, of_model = (tuple(getattr(each, name) for name in sizes) for each in (shape, architecture))
    if of_store != of_model:
        told = f"layers, heads, key heads and width are {of_store} there and {of_model} in the weights"
        raise UsageError(f"the traces are of another model: {told}")
    long = [trace for trace in traces if trace.length > FIRST_ROW + 1]
    if not long:
        raise NotEnoughDataError(f"no trace of {len(traces)} has more than {FIRST_ROW + 1} tokens")
    chosen, total, found = long[:n_outputs], len(long) + n_layers, list[dict[str, PerHead]]()
    for place, trace in enumerate(long):
        on_progress(place, total)
        found.append(_row_means(trace))
    heads = dict[str, Numbers]()
    for name in found[0]:
        mean = np.mean([one[name] for one in found], axis=0)
        heads[name] = np.full((n_layers, mean.shape[1]), np.nan)
        heads[name][list(shape.attention_layers)] = mean
    kv_heads = {"value_norm": heads.pop("value_norm")}
    outputs, layers, missing = _outputs(chosen, weights, lambda n: on_progress(len(long) + n, total))
    return Measured(
        heads=heads | outputs,
        kv_heads=kv_heads,
        layers=layers,
        n_traces=len(long),
        n_output_traces=len(chosen) if np.isfinite(outputs["head_output"]).any() else 0,
        n_keys=float(np.mean([(FIRST_ROW + 1 + trace.length) / 2 for trace in long])),
        missing=missing,
    )


def _row_means(trace: Trace) -> dict[str, Float[np.ndarray, "layer _"]]:
    """Attention of one trace; a row that does not see the first token has no sink share."""
    rows = np.arange(trace.record.row_start, trace.length)
    windows = np.array([w or trace.length for w in trace.shape.layer_windows])[:, None]
    n_visible = np.minimum(rows + 1, windows)
    entropy = trace.stream("row_entropy") / np.log(np.maximum(n_visible, 2))[:, None]
    sinks = trace.stream("sink_keys").astype(np.float64)
    sees_first = (rows >= N_SINK) & (rows < windows)
    is_late = np.broadcast_to(rows >= FIRST_ROW, n_visible.shape)
    value_norm = np.median(trace.stream("value_norm")[..., N_SINK:], axis=-1)
    return {
        "entropy": _row_mean(entropy, is_late),
        "first_share": _row_mean(sinks[..., 0], sees_first),
        "sink_share": _row_mean(sinks.sum(axis=-1), sees_first),
        "self_share": _row_mean(trace.stream("self_attention"), is_late),
        "value_norm": value_norm.astype(np.float64),
    }


def _row_mean(values: Float[np.ndarray, "layer head row"], is_counted: np.ndarray) -> PerHead:
    count = is_counted.sum(axis=1)[:, None]
    total = np.where(is_counted[:, None], values, 0.0).sum(axis=2, dtype=np.float64)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _outputs(
    traces: Sequence[Trace], weights: Weights, on_layer: Callable[[int], None]
) -> tuple[ByName, ByName, dict[str, str]]:
    """Outputs of heads and of layers, and what is missing."""
    missing = defaultdict[str, list[int]](list)
    found: list[dict[str, Any]] = [{} for _ in range(weights.architecture.n_layers)]
    for layer, row in enumerate(found):
        on_layer(layer)
        try:
            # whether the traces keep what is needed shows before weights are read
            traces[0].hidden(layer)
            parts = zip(*_layer_outputs(traces, weights, layer), strict=True)
        except TraceNotFoundError:
            missing["outputs (hidden states or attention are not kept)"].append(layer)
            continue
        of_heads, attention, mlp, inputs = map(np.concatenate, parts)
        row["head_output"], row["attention_output"] = np.median(of_heads, axis=0), np.median(attention)
        row["calibrated_variance"] = _calibrated_variance(weights, layer, inputs)
        row["top_share"] = _top_share(weights, layer, inputs)
        if not mlp.size:
            missing["feed-forward outputs (the states after the layer are not kept)"].append(layer)
            continue
        row["mlp_output"], row["output_ratio"] = np.median(mlp), np.median(mlp / np.maximum(attention, 1e-12))
    absent = np.full(weights.architecture.n_heads, np.nan)
    heads = {name: np.array([row.get(name, absent) for row in found]) for name in _OF_HEADS}
    layers = {name: np.array([row.get(name, np.nan) for row in found]) for name in _OF_LAYERS}
    return heads, layers, {what: f"layers {', '.join(map(str, where))}" for what, where in missing.items()}


def _layer_outputs(traces: Sequence[Trace], weights: Weights, layer: int) -> Iterator[Outputs]:
    """Norms of what a layer's heads and blocks add to each trace, and its inputs, from the fifth token on."""
    block = attention_block(weights, layer)
    for trace in traces:
        hidden, start = trace.hidden(layer), trace.record.row_start
        tokens, mlp = slice(max(N_SINK - start, 0), None), np.zeros(0)
        inputs, added, total = block(hidden, trace.attention(layer)[:, tokens])
        if layer < trace.shape.n_layers - 1 and layer + 1 in trace.shape.hidden_layers:
            rows: Int[np.ndarray, "row"] = np.arange(start, trace.length)[tokens]
            mlp = _norms(trace.hidden(layer + 1)[rows] - hidden[rows] - total)
        yield _norms(added).T, _norms(total), mlp, inputs[N_SINK:]


def attention_block(weights: Weights, layer: int) -> Callable[[Tokens, Attention], Added]:
    """The attention block of a layer, its weights read once.

    Returns:
        A function of hidden states and ``attention[head, query, key]``. It gives the inputs after the
        norm before attention, what each head adds to each query, and the sum of heads as it
        reaches the residual stream.
    """
    family, n_repeats = weights.family, weights.architecture.group_size
    output, output_bias = weights.heads(layer, "o"), weights.norm_bias(layer, family.o)
    value, bias = repeat_heads(weights.heads(layer, "v"), n_repeats), weights.bias(layer, "v")
    value_bias = None if bias is None else repeat_heads(bias, n_repeats)
    gain, shift = (read(layer, family.attention_norm) for read in (weights.gain, weights.norm_bias))
    post_gain = weights.gain(layer, family.attention_post_norm)

    def added_by_heads(hidden: Tokens, attention: Attention) -> Added:
        inputs = hidden
        if family.attention_norm is not None:
            centred = hidden - hidden.mean(axis=1, keepdims=True) if family.is_centred else hidden
            inputs = _normed(centred) * gain + _or_zero(shift)
        mixed = np.einsum("hqk,hkd->hqd", attention, _by_head(inputs, value, value_bias), optimize=True)
        added = np.einsum("hqd,hdw->hqw", mixed, output, optimize=True)
        total = added.sum(axis=0) + _or_zero(output_bias)
        return inputs, added, total if family.attention_post_norm is None else _normed(total) * post_gain

    return added_by_heads


def _norms(vectors: Float[np.ndarray, "*any width"]) -> Float[np.ndarray, "*any"]:
    return np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=-1))


def _normed(vectors: Tokens) -> Tokens:
    return vectors / np.sqrt(np.square(vectors).mean(axis=1, keepdims=True) + _EPSILON)


def _or_zero(bias: np.ndarray | None) -> Any:
    return 0.0 if bias is None else bias


def _by_head(inputs: Tokens, matrix: Matrices, bias: Any) -> Float[np.ndarray, "head token size"]:
    """Queries, keys or values of each head."""
    found = np.einsum("tw,hdw->htd", inputs, matrix, optimize=True)
    return found if bias is None else found + bias[:, None]


def _calibrated_variance(weights: Weights, layer: int, inputs: Tokens) -> Float[np.ndarray, "head"]:
    """Logit variance of a layer with the moments of inputs of texts, in place of isotropic ones.

    Where most of their second moment lies along one direction, as in gemma3-270m, weights alone
    say little; this shows how much. For keys it is the moment around their mean, since what is
    common to all keys moves no attention.
    """
    found = weights.architecture
    query, key = (_qk(weights, layer, part, inputs) for part in ("q", "k"))
    centred = key - key.mean(axis=1, keepdims=True)
    moments = [one.swapaxes(1, 2) @ one / one.shape[1] for one in (query, centred)]
    turns = rotations(weights.frequencies(layer), _OFFSETS, found.head_dim)
    keys = repeat_heads(moments[1], found.group_size)
    return logit_variance(moments[0], keys, turns, found.scaling).mean(axis=0)


def _top_share(weights: Weights, layer: int, inputs: Tokens) -> float:
    """Share of the inputs' second moment along its first direction, in (0, 1]."""
    gain = np.abs(weights.gain(layer, weights.family.attention_norm))
    plain = inputs / np.maximum(gain, _EPSILON)
    values = np.linalg.eigvalsh((plain.T @ plain).astype(np.float64))
    return float(values[-1] / values.sum())


def _qk(weights: Weights, layer: int, part: Part, inputs: Tokens) -> Float[np.ndarray, "head token size"]:
    """Queries or keys before they are turned."""
    family = weights.family
    found = _by_head(inputs, weights.heads(layer, part), weights.bias(layer, part)).astype(np.float64)
    gain = weights.head_gain(layer, family.q_norm if part == "q" else family.k_norm)
    if gain is None:
        return found
    square = np.square(found).mean(axis=2 if gain.size == found.shape[2] else (0, 2), keepdims=True)
    return found / np.sqrt(square + _EPSILON) * gain.reshape(-1, 1, found.shape[2])
