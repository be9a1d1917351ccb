"""The profile of a model: every tensor, every head slice, every circuit, layer by layer."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import Field

from graphhalu.config import Config
from graphhalu.provenance import provenance
from graphhalu.weights import gains
from graphhalu.weights.circuits import (
    Side,
    circuit_values,
    composed_norm,
    copying_eigenvalues,
    copying_score,
    entropy_estimate,
    head_norms,
    logit_variance,
    rotations,
    row_products,
    self_logit,
)
from graphhalu.weights.gains import Gain, activation, isotropic_inputs, output_gain
from graphhalu.weights.read import Weights
from graphhalu.weights.reading import Reads, read_attention, written
from graphhalu.weights.spectra import (
    spectrum,
)
from graphhalu.weights.spectrum_rows import slice_rows, tensor_row
from graphhalu.weights.storage import CHUNK_BYTES
from graphhalu.weights.tables import WeightProfile, head_rows, table_of

_NAN: Final = float("nan")


class ProfileSettings(Config):
    """Settings of a profile."""

    offsets: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (
        0, 1, 4, 16, 64,
    )  # fmt: skip
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


class _Below(NamedTuple):
    """What is kept of a lower layer for composition."""

    layer: int
    value_moment: Float[np.ndarray, "head size size"]
    ov_norm: Float[np.ndarray, "head"]


class _Layer(NamedTuple):
    heads: list[dict[str, Any]]
    slices: list[dict[str, Any]]
    layer: dict[str, Any]
    composition: list[dict[str, Any]]


def profile_model(
    weights: Weights,
    settings: ProfileSettings | None = None,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> WeightProfile:
    """Profile a model from its weights alone.

    Args:
        weights: An opened model.
        settings: What to compute.
        on_step: Called with how many steps are done, and of how many.

    Raises:
        DataFileError: If a tensor is missing, damaged or of another shape.
    """
    settings = settings or ProfileSettings()
    names, n_layers = list(weights.files.tensors), weights.architecture.n_layers
    total = len(names) + n_layers + 1
    tensors = []
    for place, name in enumerate(names):
        on_step(place, total)
        tensors.append(tensor_row(weights, name, is_full=settings.spectra == "full"))
    on_step(len(names), total)
    words = word_products(weights)
    layers: list[_Layer] = []
    below: deque[_Below] = deque(maxlen=settings.composition_reach or 1)
    for layer in range(n_layers):
        on_step(len(names) + 1 + layer, total)
        layers.append(_layer(weights, layer, words, below, settings))
    on_step(total, total)
    return WeightProfile(
        model=dict(weights.identity),
        architecture=weights.architecture.values(),
        settings=settings.model_dump(mode="json"),
        provenance=provenance(),
        notes=tuple(_notes(weights)),
        tensors=table_of(tensors),
        slices=table_of([row for found in layers for row in found.slices]),
        heads=table_of([row for found in layers for row in found.heads]),
        layers=table_of(_layer_rows([found.layer for found in layers], tensors)),
        composition=table_of([row for found in layers for row in found.composition]),
    )


def word_products(weights: Weights) -> Float[np.ndarray, "width width"]:
    """``E' U Gamma_final``, summed over words chunk by chunk."""
    embedding, unembedding = weights.embedding, weights.unembedding
    gain, width = weights.final_gain(), weights.architecture.hidden_size
    total = np.zeros((width, width), dtype=np.float32)
    step = max(1, CHUNK_BYTES // (4 * width))
    for start in range(0, min(embedding.shape[0], unembedding.shape[0]), step):
        stop = min(start + step, embedding.shape[0], unembedding.shape[0])
        rows = embedding.load(start, stop)
        other = rows if unembedding is embedding else unembedding.load(start, stop)
        total += rows.T @ (other * gain)
    return total


def _layer(
    weights: Weights,
    layer: int,
    words: Float[np.ndarray, "width width"],
    below: deque[_Below],
    settings: ProfileSettings,
) -> _Layer:
    reads = read_attention(weights, layer)
    n_heads = weights.architecture.n_heads
    columns = {
        "layer": np.full(n_heads, layer), "head": np.arange(n_heads),
        "kv_head": np.arange(n_heads) // weights.architecture.group_size,
        **_qk_columns(weights, layer, reads, settings),
        **_ov_columns(reads, words),
        "strength": _strength(weights, layer),
    }  # fmt: skip
    found, best = _composition(weights, layer, reads, below, columns)
    columns |= best
    if settings.composition_reach:
        moment = reads.value_moment.astype(np.float32)
        below.append(_Below(layer, moment, columns["ov_norm_written"]))
    attention, mlp = _block_gains(weights, layer, reads, settings)
    columns.pop("ov_norm_written")
    columns.pop("qk_norm_plain")
    row = {
        "layer": layer,
        "window": weights.architecture.windows[layer],
        "logit_variance": float(columns["logit_variance"].mean()),
        "valid_share": float((columns["entropy_zone"] == "valid").mean()),
        "peaked_share": float((columns["entropy_zone"] == "peaked").mean()),
        "value_norm": _rms(columns["v_norm"]),
        "ov_norm": _rms(columns["ov_norm"]),
        "copying": float(columns["copying"].mean()),
        "ov_rank": float(columns["ov_stable_rank"].mean()) / weights.architecture.head_dim,
        "attention_gain": attention.value,
        "mlp_gain": _NAN if mlp is None else mlp.value,
        "gain_ratio": _NAN if mlp is None else mlp.value / attention.value,
        "is_gain_estimate": attention.is_estimate,
    }
    return _Layer(head_rows(columns), slice_rows(weights, layer), row, found)


def _qk_columns(
    weights: Weights, layer: int, reads: Reads, settings: ProfileSettings
) -> dict[str, np.ndarray]:
    found = weights.architecture
    window = found.windows[layer]
    offsets = tuple(o for o in settings.offsets if window is None or o < window)
    turns = rotations(weights.frequencies(layer), offsets or (0,), found.head_dim)
    variance = logit_variance(reads.query_moment, reads.key_moment, turns, found.scaling)
    values = found.scaling * circuit_values(reads.query_triangle, reads.key_triangle)
    n_keys = min(settings.n_keys, window or settings.n_keys)
    estimate = entropy_estimate(variance.mean(axis=0), n_keys)
    squares = np.square(values)
    spectra = [spectrum(row) for row in squares]
    return {
        "q_norm": _trace_norm(reads.query_triangle),
        "k_norm": _trace_norm(reads.key_triangle),
        "qk_norm": np.sqrt(squares.sum(1)),
        "qk_norm_plain": np.sqrt(squares.sum(1)) / found.scaling,
        "qk_sigma_max": np.array([one.sigma_max for one in spectra]),
        "qk_stable_rank": np.array([one.stable_rank for one in spectra]),
        "qk_entropy_rank": np.array([one.entropy_rank for one in spectra]),
        "logit_variance": variance.mean(axis=0),
        "logit_variance_near": variance[0],
        "logit_variance_far": variance[-1],
        "self_logit": self_logit(reads.query, reads.key, found.scaling),
        "entropy_estimate": estimate.values,
        "entropy_zone": estimate.zone,
        "logit_bound": _logit_bound(weights, layer, values[:, 0]),
    }


def _logit_bound(
    weights: Weights, layer: int, sigma_max: Float[np.ndarray, "head"]
) -> Float[np.ndarray, "head"]:
    """``D sigma_max``, or from the gains where queries and keys are normalised, or the cap."""
    found, family = weights.architecture, weights.family
    bound = found.hidden_size * sigma_max
    q_gain, k_gain = (weights.head_gain(layer, norm) for norm in (family.q_norm, family.k_norm))
    if q_gain is not None and k_gain is not None and q_gain.size == found.head_dim:
        largest = float(np.abs(q_gain).max() * np.abs(k_gain).max())
        bound = np.full(len(bound), found.head_dim * found.scaling * largest)
    return bound if found.softcap is None else np.minimum(bound, found.softcap)


def _ov_columns(reads: Reads, words: Float[np.ndarray, "width width"]) -> dict[str, np.ndarray]:
    squares = np.square(circuit_values(reads.output_triangle, reads.value_triangle))
    spectra = [spectrum(row) for row in squares]
    norm = np.einsum("hst,hts->h", row_products(reads.output), reads.value_moment)
    return {
        "v_norm": _trace_norm(reads.value_triangle),
        "o_norm": _trace_norm(reads.output_triangle),
        "ov_norm": np.sqrt(squares.sum(1)),
        "ov_norm_written": np.sqrt(np.maximum(norm, 0.0)),
        "ov_sigma_max": np.array([one.sigma_max for one in spectra]),
        "ov_stable_rank": np.array([one.stable_rank for one in spectra]),
        "copying": copying_score(copying_eigenvalues(reads.value, reads.output, words)),
    }


def _composition(
    weights: Weights,
    layer: int,
    reads: Reads,
    below: deque[_Below],
    columns: Mapping[str, np.ndarray],
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Every pair with a head of the layers below, and the largest of each head."""
    sides = {
        "q": (Side(reads.query, reads.key_moment), columns["qk_norm_plain"]),
        "k": (Side(reads.key, reads.query_moment), columns["qk_norm_plain"]),
        "v": (
            Side(reads.value, row_products(reads.output)),
            columns["ov_norm_written"],
        ),
    }
    rows: list[dict[str, Any]] = []
    best = {kind: np.full(len(reads.query), _NAN) for kind in sides}
    for lower in below:
        output = written(weights, lower.layer, weights.heads(lower.layer, "o"))
        scores = {}
        for kind, (side, norm) in sides.items():
            whole = composed_norm(side, output, lower.value_moment)
            scores[kind] = whole / np.maximum(norm[:, None] * lower.ov_norm, 1e-30)
            best[kind] = np.fmax(best[kind], scores[kind].max(axis=1))
        for head, other in np.ndindex(scores["q"].shape):
            rows.append(
                {
                    "layer": layer, "head": head, "from_layer": lower.layer, "from_head": other,
                    **{kind: float(values[head, other]) for kind, values in scores.items()},
                }
            )  # fmt: skip
    return rows, {f"{kind}_composition": values for kind, values in best.items()}


def _block_gains(
    weights: Weights, layer: int, reads: Reads, settings: ProfileSettings
) -> tuple[Gain, Gain | None]:
    family, found = weights.family, weights.architecture
    window = found.windows[layer]
    n_keys = min(settings.n_keys, window or settings.n_keys)
    if family.attention_post_norm is not None:
        attention = gains.post_norm_gain(weights.gain(layer, family.attention_post_norm))
    else:
        shared = reads.value[:: found.group_size]
        attention = gains.attention_gain(shared, reads.output, n_keys)
    if family.mlp_post_norm is not None:
        return attention, gains.post_norm_gain(weights.gain(layer, family.mlp_post_norm))
    return attention, _mlp_gain(weights, layer, settings)


def _mlp_gain(weights: Weights, layer: int, settings: ProfileSettings) -> Gain | None:
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
        return None
    middle, function = inputs @ up.T, activation(weights.architecture.activation)
    del up
    gate = weights.block(layer, "gate")
    middle = function(middle) if gate is None else middle * function(inputs @ gate.T)
    del gate
    down = weights.block(layer, "down")
    return None if down is None else output_gain(middle @ down.T)


def _strength(weights: Weights, layer: int) -> Float[np.ndarray, "head"]:
    """``sqrt(|W_Q| |W_K|)`` of the stored matrices, as an earlier system computed it."""
    norms = [head_norms(weights.heads(layer, part)) for part in ("q", "k")]
    keys = np.repeat(norms[1], weights.architecture.group_size)
    found: Float[np.ndarray, "head"] = np.sqrt(norms[0] * keys)
    return found


def _layer_rows(
    layers: list[dict[str, Any]], tensors: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Layers with what their tensors say, and values against the median layer."""
    middle = float(np.median([row["value_norm"] for row in layers]))
    rows = []
    for row in layers:
        own = [t for t in tensors if t["layer"] == row["layer"] and np.isfinite(t["sigma_max"])]
        alphas = [t["tail_alpha"] for t in own if np.isfinite(t["tail_alpha"])]
        norms = {t["part"]: t["frobenius"] for t in own}
        rows.append(
            {
                **row,
                "value_amplification": row["value_norm"] / middle if middle > 0 else _NAN,
                "tail_alpha": float(np.mean(alphas)) if alphas else _NAN,
                "outlier": max((t["outlier"] for t in own), default=_NAN),
                "dominance": _dominance(norms),
            }
        )
    return rows


def _dominance(norms: Mapping[str, float]) -> float:
    parts = ("gate", "up", "down", "q", "k")
    if not set(parts) <= set(norms):
        return _NAN
    gate, up, down, q, k = (norms[part] for part in parts)
    return float(gate * up * down / np.sqrt(q * k))


def _notes(weights: Weights) -> list[str]:
    found, family, notes = weights.architecture, weights.family, []
    if family.q_norm is not None:
        notes.append(
            "queries and keys are normalised: s^2 takes their norm at its mean (estimate), and "
            "the bound on logits comes from the gains"
        )
    if family.attention_post_norm is not None:
        notes.append(
            "norms stand behind both blocks: gains are those of the norms, exact; circuits are "
            "linearised through them"
        )
    if family.attention_norm is None:
        notes.append("no norm stands before attention: value norms are for inputs of unit size")
    if found.softcap is not None:
        notes.append(f"logits are capped at {found.softcap:g}, which s^2 does not know")
    kinds = sorted({rope.scaling for rope in found.ropes if not rope.is_modelled})
    if kinds:
        notes.append(f"RoPE is stretched by {', '.join(kinds)}: plain frequencies were used")
    if family.up is None:
        notes.append("the feed-forward block has experts: it has no gain here")
    return notes


def _trace_norm(triangle: Float[np.ndarray, "head side size"]) -> Float[np.ndarray, "head"]:
    found: Float[np.ndarray, "head"] = np.sqrt(np.square(triangle).sum(axis=(1, 2)))
    return found


def _rms(values: Float[np.ndarray, "head"]) -> float:
    return float(np.sqrt(np.square(values).mean()))
