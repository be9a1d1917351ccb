"""What the running model did, head by head and layer by layer, taken from a trace store."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from graphhalu.errors import NotEnoughDataError, TraceNotFoundError, UsageError
from graphhalu.studies.weights.calibrated import calibrated
from graphhalu.traces.schema import TraceShape
from graphhalu.traces.trace import Trace
from graphhalu.weights.read import Weights

FIRST_ROW: Final = 16
"""First row whose entropy counts: earlier ones see too few keys."""
N_SINK: Final = 4
"""Tokens at the start that are left out of norms, and rows after which sinks count."""
_OFFSETS: Final = (0, 1, 4, 16)

MEASURED_MEANINGS: Final = {
    "entropy": "entropy of a row over the log of the keys it sees, rows from 16 on, mean",
    "first_share": "attention to the first token, rows from 4 on, mean",
    "sink_share": "attention to the first four tokens, rows from 4 on, mean",
    "self_share": "attention of a row to its own token, rows from 16 on, mean",
    "value_norm": "norm of value vectors, median over tokens from the fifth on",
    "head_output": "norm of what a head adds to the stream, median over tokens from the fifth on",
    "attention_output": "norm of what attention adds to the stream, median as above",
    "mlp_output": "norm of what the feed-forward block adds, median as above",
    "calibrated_variance": "s^2 with the inputs of these traces in place of isotropic ones",
    "top_share": "share of the inputs' second moment along its first direction, sinks left out",
    "output_ratio": "mlp_output over attention_output, token by token, median",
}


@dataclass(frozen=True)
class Measured:
    """Run-time quantities; NaN where a store does not keep what they need.

    Attributes:
        heads: By name, one value a layer and head.
        kv_heads: By name, one value a layer and key head.
        layers: By name, one value a layer.
        n_traces: Traces that attention was measured on.
        n_output_traces: Traces that outputs were computed of.
        n_keys: Mean number of keys that the counted rows see.
        missing: What the store does not allow, with the reason.
    """

    heads: Mapping[str, Float[np.ndarray, "layer head"]]
    kv_heads: Mapping[str, Float[np.ndarray, "layer kv_head"]]
    layers: Mapping[str, Float[np.ndarray, "layer"]]
    n_traces: int
    n_output_traces: int
    n_keys: float
    missing: Mapping[str, str]


class _Streams(NamedTuple):
    entropy: Float[np.ndarray, "layer head"]
    first_share: Float[np.ndarray, "layer head"]
    sink_share: Float[np.ndarray, "layer head"]
    self_share: Float[np.ndarray, "layer head"]
    value_norm: Float[np.ndarray, "layer kv_head"]


def measure_store(
    traces: Sequence[Trace],
    weights: Weights,
    *,
    n_output_traces: int = 64,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> Measured:
    """Measure attention and values of all traces, and what blocks add to the stream of some.

    What a head adds is computed anew from the stored attention and hidden states with the
    model's weights; the feed-forward block is what else a layer changes. The last layer's has no
    number, since its output is stored after the final norm.

    Args:
        traces: Traces of the same model.
        weights: Its weights.
        n_output_traces: Of how many traces outputs are computed.
        on_step: Called with how many steps are done, and of how many.

    Raises:
        UsageError: If the traces are of a model of another shape.
        NotEnoughDataError: If no trace is long enough.
    """
    shape = _checked(traces, weights)
    n_layers = weights.architecture.n_layers
    long = [trace for trace in traces if trace.length > FIRST_ROW + 1]
    if not long:
        message = f"no trace of {len(traces)} has more than {FIRST_ROW + 1} tokens"
        raise NotEnoughDataError(message)
    chosen = long[:n_output_traces]
    total = len(long) + n_layers
    found: list[_Streams] = []
    for place, trace in enumerate(long):
        on_step(place, total)
        found.append(_streams(trace))
    means = [np.mean([one[n] for one in found], axis=0) for n in range(len(_Streams._fields))]
    streams = _Streams(*(_spread(values, shape, n_layers) for values in means))
    outputs, missing = _outputs(chosen, weights, lambda done: on_step(len(long) + done, total))
    named = dict(zip(_Streams._fields, streams, strict=True))
    return Measured(
        heads={
            **{n: named[n] for n in _Streams._fields[:-1]},
            "head_output": outputs.heads,
            "calibrated_variance": outputs.variance,
        },
        kv_heads={"value_norm": streams.value_norm},
        layers={
            "attention_output": outputs.attention,
            "mlp_output": outputs.mlp,
            "output_ratio": outputs.ratio,
            "top_share": outputs.top_share,
        },
        n_traces=len(long),
        n_output_traces=len(chosen) if np.isfinite(outputs.heads).any() else 0,
        n_keys=float(np.mean([(FIRST_ROW + 1 + trace.length) / 2 for trace in long])),
        missing=missing,
    )  # fmt: skip


def _checked(traces: Sequence[Trace], weights: Weights) -> TraceShape:
    if not len(traces):
        message = "there is no trace to validate against"
        raise NotEnoughDataError(message)
    shape, found = traces[0].shape, weights.architecture
    of_store = (shape.n_layers, shape.n_heads, shape.n_kv_heads, shape.hidden_size)
    of_model = (found.n_layers, found.n_heads, found.n_kv_heads, found.hidden_size)
    if of_store != of_model:
        message = (
            f"the traces are of another model: layers, heads, key heads and width are {of_store} "
            f"there and {of_model} in the weights"
        )
        raise UsageError(message)
    return shape


def _streams(trace: Trace) -> _Streams:
    """Attention of one trace; a row that does not see the first token has no sink share."""
    start = trace.record.row_start
    rows = np.arange(start, trace.length)
    windows = np.array([w or trace.length for w in trace.shape.layer_windows])[:, None]
    n_visible = np.minimum(rows + 1, windows)
    entropy = trace.stream("row_entropy") / np.log(np.maximum(n_visible, 2))[:, None]
    sinks = trace.stream("sink_keys").astype(np.float64)
    sees_first = (rows >= N_SINK) & (rows < windows)
    is_late = np.broadcast_to(rows >= FIRST_ROW, n_visible.shape)
    return _Streams(
        entropy=_row_mean(entropy, is_late),
        first_share=_row_mean(sinks[..., 0], sees_first),
        sink_share=_row_mean(sinks.sum(axis=-1), sees_first),
        self_share=_row_mean(trace.stream("self_attention"), is_late),
        value_norm=np.median(trace.stream("value_norm")[..., N_SINK:], axis=-1).astype(np.float64),
    )


def _row_mean(
    values: Float[np.ndarray, "layer head row"], is_counted: np.ndarray
) -> Float[np.ndarray, "layer head"]:
    count = is_counted.sum(axis=1)[:, None]
    total = np.where(is_counted[:, None], values, 0.0).sum(axis=2, dtype=np.float64)
    mean: Float[np.ndarray, "layer head"] = np.divide(
        total, count, out=np.full(total.shape, np.nan), where=count > 0
    )
    return mean


def _spread(
    values: Float[np.ndarray, "kept head"], shape: TraceShape, n_layers: int
) -> Float[np.ndarray, "layer head"]:
    """All layers of the model, NaN where the store keeps none."""
    found = np.full((n_layers, values.shape[1]), np.nan)
    found[list(shape.attention_layers)] = values
    return found


class _Outputs(NamedTuple):
    heads: Float[np.ndarray, "layer head"]
    attention: Float[np.ndarray, "layer"]
    mlp: Float[np.ndarray, "layer"]
    ratio: Float[np.ndarray, "layer"]
    variance: Float[np.ndarray, "layer head"]
    top_share: Float[np.ndarray, "layer"]


def _outputs(
    traces: Sequence[Trace], weights: Weights, on_layer: Callable[[int], None]
) -> tuple[_Outputs, dict[str, str]]:
    found = weights.architecture
    n_layers, per_head = found.n_layers, (found.n_layers, found.n_heads)
    heads, variance = (np.full(per_head, np.nan) for _ in range(2))
    attention_norm, mlp_norm, ratio, top_share = (np.full(n_layers, np.nan) for _ in range(4))
    outputs = _Outputs(heads, attention_norm, mlp_norm, ratio, variance, top_share)
    absent: dict[str, list[int]] = {}
    for layer in range(n_layers):
        on_layer(layer)
        try:
            parts = _layer_norms(traces, weights, layer)
        except TraceNotFoundError:
            absent.setdefault("outputs (hidden states or attention are not kept)", []).append(layer)
            continue
        outputs.heads[layer] = np.median(np.concatenate([p.heads for p in parts], axis=1), axis=1)
        inputs = np.concatenate([p.inputs for p in parts])
        known = calibrated(weights, layer, inputs, _OFFSETS)
        outputs.variance[layer], outputs.top_share[layer] = known
        attention = np.concatenate([p.attention for p in parts])
        outputs.attention[layer] = np.median(attention)
        mlp = np.concatenate([p.mlp for p in parts])
        if not mlp.size:
            name = "feed-forward outputs (the states after the layer are not kept)"
            absent.setdefault(name, []).append(layer)
            continue
        outputs.mlp[layer] = np.median(mlp)
        outputs.ratio[layer] = np.median(mlp / np.maximum(attention, 1e-12))
    missing = {what: f"layers {', '.join(map(str, layers))}" for what, layers in absent.items()}
    return outputs, missing


class _Norms(NamedTuple):
    heads: Float[np.ndarray, "head token"]
    attention: Float[np.ndarray, "token"]
    mlp: Float[np.ndarray, "_"]
    inputs: Float[np.ndarray, "token width"]


def _layer_norms(traces: Sequence[Trace], weights: Weights, layer: int) -> list[_Norms]:
    # whether the traces keep what is needed shows at the first one, before weights are read
    traces[0].hidden(layer)
    found = layer_map(weights, layer)
    return [_output_norms(trace, found) for trace in traces]


def _output_norms(trace: Trace, found: "LayerMap") -> _Norms:
    """Norms of what a layer's heads and blocks add, for tokens from the fifth on."""
    layer = found.layer
    hidden = trace.hidden(layer)
    attention = trace.attention(layer)
    tokens = slice(max(N_SINK - trace.record.row_start, 0), None)
    inputs = found.inputs(hidden)
    values = found.values(inputs)
    mixed = np.einsum("hqk,hkd->hqd", attention[:, tokens], values, optimize=True)
    added = np.einsum("hqd,hdw->hqw", mixed, found.output, optimize=True)
    heads = np.sqrt(np.square(added, dtype=np.float64).sum(axis=2))
    total = found.written(added.sum(axis=0))
    norm = np.sqrt(np.square(total, dtype=np.float64).sum(axis=1))
    is_last = layer == found.weights.architecture.n_layers - 1
    if is_last or layer + 1 not in trace.shape.hidden_layers:
        return _Norms(heads, norm, np.zeros(0), inputs[N_SINK:])
    rows: Int[np.ndarray, "row"] = np.arange(trace.record.row_start, trace.length)[tokens]
    change = trace.hidden(layer + 1)[rows] - hidden[rows] - total
    mlp = np.sqrt(np.square(change, dtype=np.float64).sum(axis=1))
    return _Norms(heads, norm, mlp, inputs[N_SINK:])


@dataclass(frozen=True)
class LayerMap:
    """The linear parts of a layer's attention, to compute again what heads add.

    Attributes:
        weights: The model.
        layer: Which layer.
        value: Rows of ``W_V``, one a query head.
        value_bias: Its bias.
        output: Transposed columns of ``W_O``.
        output_bias: Its bias.
        gain: Gain of the norm before attention.
        shift: Bias of that norm.
        post_gain: Gain of a norm behind attention.
    """

    weights: Weights
    layer: int
    value: Float[np.ndarray, "head size width"]
    value_bias: Float[np.ndarray, "head size"] | None
    output: Float[np.ndarray, "head size width"]
    output_bias: Float[np.ndarray, "width"] | None
    gain: Float[np.ndarray, "width"]
    shift: Float[np.ndarray, "width"] | None
    post_gain: Float[np.ndarray, "width"] | None

    def values(
        self, inputs: Float[np.ndarray, "token width"]
    ) -> Float[np.ndarray, "head token size"]:
        """Value vectors of inputs after the norm before attention."""
        found: Float[np.ndarray, "head token size"] = np.einsum(
            "tw,hdw->htd", inputs, self.value, optimize=True
        )
        return found if self.value_bias is None else found + self.value_bias[:, None]

    def inputs(self, hidden: Float[np.ndarray, "token width"]) -> Float[np.ndarray, "token width"]:
        """Hidden states after the norm before attention."""
        family = self.weights.family
        if family.attention_norm is None:
            return hidden
        centred = hidden - hidden.mean(axis=1, keepdims=True) if family.is_centred else hidden
        scale = np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + 1e-6)
        normed: Float[np.ndarray, "token width"] = centred / scale * self.gain
        return normed if self.shift is None else normed + self.shift

    def written(self, added: Float[np.ndarray, "token width"]) -> Float[np.ndarray, "token width"]:
        """What reaches the stream of the sum of heads."""
        total = added if self.output_bias is None else added + self.output_bias
        if self.post_gain is None:
            return total
        scale = np.sqrt(np.square(total).mean(axis=1, keepdims=True) + 1e-6)
        normed: Float[np.ndarray, "token width"] = total / scale * self.post_gain
        return normed


def layer_map(weights: Weights, layer: int) -> LayerMap:
    """Read the map of a layer."""
    family, n_repeats = weights.family, weights.architecture.group_size
    bias = weights.bias(layer, "v")
    post = family.attention_post_norm
    return LayerMap(
        weights, layer,
        value=np.repeat(weights.heads(layer, "v"), n_repeats, axis=0),
        value_bias=None if bias is None else np.repeat(bias, n_repeats, axis=0),
        output=weights.heads(layer, "o"),
        output_bias=weights.norm_bias(layer, family.o),
        gain=weights.gain(layer, family.attention_norm),
        shift=weights.norm_bias(layer, family.attention_norm),
        post_gain=None if post is None else weights.gain(layer, post),
    )  # fmt: skip
