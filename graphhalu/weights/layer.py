"""One layer of a weight profile: circuits of its heads, composition with heads below, gains."""

from collections import deque
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Shaped
from pydantic import Field

from graphhalu.core.config import Config
from graphhalu.weights.circuits import (
    Matrices,
    Moments,
    PerHead,
    activation,
    attention_gain,
    circuit_values,
    composed_norm,
    copying_eigenvalues,
    copying_score,
    entropy_estimate,
    grams,
    head_norms,
    isotropic_inputs,
    logit_variance,
    normalised,
    output_gain,
    rms,
    rotations,
    row_products,
    self_logit,
    triangles,
)
from graphhalu.weights.read import PARTS, Part, Weights, repeat_heads
from graphhalu.weights.spectra import spectrum

Words = Float32[np.ndarray, "width width"]
Columns = dict[str, Shaped[np.ndarray, "_"]]


class ProfileSettings(Config):
    """Settings of a profile."""

    offsets: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 4, 16, 64)
    """Distances between query and key over which the logit variance is averaged, in tokens."""
    n_keys: Annotated[int, Field(ge=2)] = 64
    """Keys that the entropy estimate and the attention gain are for; a window has fewer."""
    spectra: Literal["full", "largest"] = "full"
    """All singular values of every tensor, or the largest alone, which is quick for large ones."""
    composition_reach: Annotated[int, Field(ge=0)] = 4
    """How many layers below a head are looked at for composition."""
    n_samples: Annotated[int, Field(ge=1)] = 256
    """Inputs drawn for the gain of the feed-forward block."""
    seed: int = 0
    """Seed of these inputs."""


class Factor(NamedTuple):
    """Queries, keys or values of a layer as a map of normalised inputs, or its outputs.

    There is one a query head: keys and values are repeated.

    Attributes:
        matrix: ``W Gamma``, with the mean of inputs taken off where the norm does so; of
            outputs the transposed columns of ``W_O``, with the gain of a norm behind it.
        triangle: Of the QR decomposition; of outputs without the gain of a norm behind them.
        moment: Second moments of what the map gives; that of a bias is included for queries,
            and not for keys, since a constant moves no attention.
    """

    matrix: Matrices
    triangle: Float[np.ndarray, "head side size"]
    moment: Float[np.ndarray, "head size size"]


Factors = dict[Part, Factor]
LowerLayer = tuple[int, Moments, PerHead]
"""Number, value moments and OV norms of a layer below, for composition."""


def profile_layer(
    weights: Weights, layer: int, words: Words, below: deque[LowerLayer], settings: ProfileSettings
) -> tuple[Columns, dict[str, Any], list[Columns]]:
    """Profile of one layer.

    Args:
        weights: The model.
        layer: Which layer.
        words: Embedding times unembedding, summed over words.
        below: The layers below, to which this one is added.
        settings: Settings of the profile.

    Returns:
        Columns of the heads of the layer, numbers of the layer, and columns of pairs of heads.

    Raises:
        DataFileError: If a tensor is missing or of another shape.
    """
    found, n_heads = weights.architecture, weights.architecture.n_heads
    factors = attention_factors(weights, layer)
    heads: Columns = {
        "layer": np.full(n_heads, layer),
        "head": np.arange(n_heads),
        "kv_head": np.arange(n_heads) // found.group_size,
        **_qk_columns(weights, layer, factors, settings),
        **_ov_columns(factors, words),
        "strength": _strength(weights, layer),
    }
    squares = np.einsum("hst,hts->h", factors["o"].moment, factors["v"].moment)
    own = (layer, factors["v"].moment.astype(np.float32), np.sqrt(np.maximum(squares, 0.0)))
    pairs, best = _composition(weights, factors, below, heads["qk_norm"], own)
    if settings.composition_reach:
        below.append(own)
    attention, mlp = _gains(weights, layer, factors, settings)
    numbers = {
        "layer": layer,
        "window": found.windows[layer],
        "logit_variance": float(heads["logit_variance"].mean()),
        "valid_share": float((heads["entropy_zone"] == "valid").mean()),
        "peaked_share": float((heads["entropy_zone"] == "peaked").mean()),
        "value_norm": rms(heads["v_norm"]),
        "ov_norm": rms(heads["ov_norm"]),
        "copying": float(heads["copying"].mean()),
        "ov_rank": float(heads["ov_stable_rank"].mean()) / found.head_dim,
        "attention_gain": attention,
        "mlp_gain": mlp,
        "gain_ratio": mlp / attention,
        "is_gain_estimate": weights.family.attention_post_norm is None,
    }
    return heads | best, numbers, pairs


def attention_factors(weights: Weights, layer: int) -> Factors:
    """All parts of a layer's attention, with the norms around it folded in.

    Raises:
        DataFileError: If a tensor is missing or of another shape.
    """
    family = weights.family
    output = weights.heads(layer, "o")
    written = _written(weights, layer, output)
    found: Factors = {"o": Factor(written, triangles(output), row_products(written))}
    parts: tuple[tuple[Part, str | None], ...] = (("q", family.q_norm), ("k", family.k_norm), ("v", None))
    for part, norm in parts:
        matrix, bias = _linear_map(weights, layer, part)
        gain = weights.head_gain(layer, norm)
        if gain is not None:
            # a bias before the norm is small beside the queries; after it there is none
            matrix, bias = normalised(matrix, gain, is_shared=gain.size != matrix.shape[1]), None
        triangle = triangles(matrix)
        moment = grams(triangle)
        if part == "q" and bias is not None:
            moment = moment + bias[:, :, None] * bias[:, None, :]
        n_repeats = 1 if part == "q" else weights.architecture.group_size
        found[part] = Factor(*(repeat_heads(v, n_repeats) for v in (matrix, triangle, moment)))
    return found


def _linear_map(
    weights: Weights, layer: int, part: Part
) -> tuple[Matrices, Float[np.ndarray, "head size"] | None]:
    """Matrix and bias of a part, with the norm before it; keys and values once a key head."""
    family = weights.family
    stored = weights.heads(layer, part)
    matrix = stored * weights.gain(layer, family.attention_norm)
    shift, bias = weights.norm_bias(layer, family.attention_norm), weights.bias(layer, part)
    total = None if bias is None else bias.astype(np.float64)
    if shift is not None:
        moved = stored.astype(np.float64) @ shift.astype(np.float64)
        total = moved if total is None else total + moved
    if family.is_centred:
        matrix -= matrix.mean(axis=2, keepdims=True)
    return matrix, total


def _written(weights: Weights, layer: int, output: Matrices) -> Matrices:
    """Outputs of heads as they reach the stream, through the gain of a norm behind them."""
    norm = weights.family.attention_post_norm
    return output if norm is None else output * weights.gain(layer, norm)


def _qk_columns(weights: Weights, layer: int, factors: Factors, settings: ProfileSettings) -> Columns:
    found, window = weights.architecture, weights.architecture.windows[layer]
    query, key = factors["q"], factors["k"]
    offsets = tuple(o for o in settings.offsets if window is None or o < window)
    turns = rotations(weights.frequencies(layer), offsets or (0,), found.head_dim)
    variance = logit_variance(query.moment, key.moment, turns, found.scaling)
    values = found.scaling * circuit_values(query.triangle, key.triangle)
    n_keys = min(settings.n_keys, window or settings.n_keys)
    estimate, zone = entropy_estimate(variance.mean(axis=0), n_keys)
    return {
        "q_norm": _trace_norm(query.triangle),
        "k_norm": _trace_norm(key.triangle),
        **_circuit_columns("qk", values),
        "logit_variance": variance.mean(axis=0),
        "logit_variance_near": variance[0],
        "logit_variance_far": variance[-1],
        "self_logit": self_logit(query.matrix, key.matrix, found.scaling),
        "entropy_estimate": estimate,
        "entropy_zone": zone,
        "logit_bound": _logit_bound(weights, layer, values[:, 0]),
    }


def _logit_bound(weights: Weights, layer: int, sigma_max: PerHead) -> PerHead:
    """``D sigma_max``, or from the gains where queries and keys are normalised, or the cap."""
    found, family = weights.architecture, weights.family
    bound = found.hidden_size * sigma_max
    q_gain, k_gain = (weights.head_gain(layer, norm) for norm in (family.q_norm, family.k_norm))
    if q_gain is not None and k_gain is not None and q_gain.size == found.head_dim:
        largest = float(np.abs(q_gain).max() * np.abs(k_gain).max())
        bound = np.full(len(bound), found.head_dim * found.scaling * largest)
    return bound if found.softcap is None else np.minimum(bound, found.softcap)


def _ov_columns(factors: Factors, words: Words) -> Columns:
    value, output = factors["v"], factors["o"]
    circuit = _circuit_columns("ov", circuit_values(output.triangle, value.triangle))
    circuit.pop("ov_entropy_rank")
    return {
        "v_norm": _trace_norm(value.triangle),
        "o_norm": _trace_norm(output.triangle),
        **circuit,
        "copying": copying_score(copying_eigenvalues(value.matrix, output.matrix, words)),
    }


def _circuit_columns(name: str, values: Float[np.ndarray, "head value"]) -> Columns:
    squares = np.square(values)
    spectra = [spectrum(row) for row in squares]
    ranks = ("sigma_max", "stable_rank", "entropy_rank")
    return {
        f"{name}_norm": np.sqrt(squares.sum(1)),
        **{f"{name}_{rank}": np.array([getattr(one, rank) for one in spectra]) for rank in ranks},
    }


def _composition(
    weights: Weights, factors: Factors, below: deque[LowerLayer], qk_norm: PerHead, own: LowerLayer
) -> tuple[list[Columns], Columns]:
    """Every pair with a head of the layers below, and the largest of each head."""
    query, key, value, output = (factors[part] for part in PARTS)
    plain = qk_norm / weights.architecture.scaling
    sides = {
        "q": (query.matrix, key.moment, plain),
        "k": (key.matrix, query.moment, plain),
        "v": (value.matrix, output.moment, own[2]),
    }
    n_heads = len(query.matrix)
    head, from_head = (index.ravel() for index in np.indices((n_heads, n_heads)))
    pairs: list[Columns] = []
    best = {kind: np.full(n_heads, np.nan) for kind in sides}
    for from_layer, value_moment, ov_norm in below:
        earlier = _written(weights, from_layer, weights.heads(from_layer, "o"))
        columns = {
            "layer": np.full(len(head), own[0]),
            "head": head,
            "from_layer": np.full(len(head), from_layer),
            "from_head": from_head,
        }
        for kind, (near, far, norm) in sides.items():
            whole = composed_norm(near, far, earlier, value_moment)
            scores = whole / np.maximum(norm[:, None] * ov_norm, 1e-30)
            best[kind] = np.fmax(best[kind], scores.max(axis=1))
            columns[kind] = scores.ravel()
        pairs.append(columns)
    return pairs, {f"{kind}_composition": values for kind, values in best.items()}


def _gains(weights: Weights, layer: int, factors: Factors, settings: ProfileSettings) -> tuple[float, float]:
    """Gains of attention and of the feed-forward block; NaN where there is none."""
    family, found = weights.family, weights.architecture
    if family.attention_post_norm is not None:
        attention = rms(weights.gain(layer, family.attention_post_norm))
    else:
        n_keys = min(settings.n_keys, found.windows[layer] or settings.n_keys)
        shared = factors["v"].matrix[:: found.group_size]
        attention = attention_gain(shared, factors["o"].matrix, n_keys)
    if family.mlp_post_norm is not None:
        return attention, rms(weights.gain(layer, family.mlp_post_norm))
    return attention, _mlp_gain(weights, layer, settings)


def _mlp_gain(weights: Weights, layer: int, settings: ProfileSettings) -> float:
    """Drawn inputs through the feed-forward block, one of its matrices at a time."""
    norm = weights.family.mlp_norm
    drawn = isotropic_inputs(weights.architecture.hidden_size, settings.n_samples, settings.seed)
    if weights.family.is_centred:
        drawn = drawn - drawn.mean(axis=1, keepdims=True)
    inputs = drawn * weights.gain(layer, norm)
    shift = weights.norm_bias(layer, norm)
    inputs = inputs if shift is None else inputs + shift
    up = weights.block(layer, "up")
    if up is None:
        return np.nan
    middle, function = inputs @ up.T, activation(weights.architecture.activation)
    del up
    gate = weights.block(layer, "gate")
    middle = function(middle) if gate is None else middle * function(inputs @ gate.T)
    del gate
    down = weights.block(layer, "down")
    return np.nan if down is None else output_gain(middle @ down.T)


def _strength(weights: Weights, layer: int) -> PerHead:
    """``sqrt(|W_Q| |W_K|)`` of the stored matrices, as an earlier system computed it."""
    query, key = (head_norms(weights.heads(layer, part)) for part in PARTS[:2])
    return np.sqrt(query * repeat_heads(key, weights.architecture.group_size))


def _trace_norm(triangle: Float[np.ndarray, "head side size"]) -> PerHead:
    return np.sqrt(np.square(triangle).sum(axis=(1, 2)))
