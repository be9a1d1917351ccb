"""Logit variance with the inputs that a model really has, in place of isotropic ones.

A static quantity supposes that normalised inputs have the identity as second moment. Where most
of it lies along one direction, as in gemma3-270m, weights alone say little; this shows how much.
"""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float

from graphhalu.weights.circuits import logit_variance, rotations
from graphhalu.weights.read import Part, Weights, repeat_heads

_EPSILON: Final = 1e-6


class Calibrated(NamedTuple):
    """What inputs from texts say of a layer.

    Attributes:
        variance: ``s^2`` of each head with measured moments; for keys that around their mean,
            since what is common to all keys moves no attention.
        top_share: Share of the inputs' second moment along its first direction, in (0, 1]; one
            over the width where inputs are isotropic.
    """

    variance: Float[np.ndarray, "head"]
    top_share: float


def calibrated(
    weights: Weights,
    layer: int,
    inputs: Float[np.ndarray, "token width"],
    offsets: tuple[int, ...],
) -> Calibrated:
    """Logit variance of a layer from inputs after the norm before attention.

    Args:
        weights: The model.
        layer: Which layer.
        inputs: Of tokens that are no sinks.
        offsets: Distances between query and key that are averaged over.
    """
    found = weights.architecture
    query, key = (_vectors(weights, layer, part, inputs) for part in ("q", "k"))
    centred = key - key.mean(axis=1, keepdims=True)
    moments = [one.swapaxes(1, 2) @ one / one.shape[1] for one in (query, centred)]
    turns = rotations(weights.frequencies(layer), offsets, found.head_dim)
    variance = logit_variance(
        moments[0], repeat_heads(moments[1], found.group_size), turns, found.scaling
    )
    plain = inputs / np.maximum(np.abs(weights.gain(layer, weights.family.attention_norm)), 1e-6)
    values = np.linalg.eigvalsh((plain.T @ plain).astype(np.float64))
    return Calibrated(variance.mean(axis=0), float(values[-1] / values.sum()))


def _vectors(
    weights: Weights, layer: int, part: Part, inputs: Float[np.ndarray, "token width"]
) -> Float[np.ndarray, "head token size"]:
    """Queries or keys before they are turned."""
    found = np.einsum("tw,hdw->htd", inputs, weights.heads(layer, part), optimize=True)
    bias = weights.bias(layer, part)
    found = found if bias is None else found + bias[:, None]
    family = weights.family
    gain = weights.head_gain(layer, family.q_norm if part == "q" else family.k_norm)
    wide: Float[np.ndarray, "head token size"] = found.astype(np.float64)
    if gain is None:
        return wide
    is_shared = gain.size != found.shape[2]
    square = np.square(wide).mean(axis=(0, 2) if is_shared else 2, keepdims=True)
    scale = gain.reshape(-1, 1, found.shape[2])
    normed: Float[np.ndarray, "head token size"] = wide / np.sqrt(square + _EPSILON) * scale
    return normed
