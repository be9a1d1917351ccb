"""What a layer's attention makes of normalised inputs: factors with norms folded in."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from graphhalu.weights.circuits import grams, normalised, triangles
from graphhalu.weights.read import Part, Weights, blend


class Factor(NamedTuple):
    """Queries, keys or values as a linear map of normalised inputs.

    Attributes:
        matrix: ``W Gamma``, with the mean of inputs taken off where the norm does so.
        bias: What is added, from the layer's bias and that of the norm.
    """

    matrix: Float32[np.ndarray, "head size width"]
    bias: Float[np.ndarray, "head size"] | None


class Reads(NamedTuple):
    """The parts of a layer's attention, one a query head, keys and values repeated.

    Attributes:
        query: Queries as a map of normalised inputs.
        key: Keys.
        value: Values.
        output: Transposed columns of ``W_O``, with the gain of a norm behind it.
        query_moment: Second moments of queries, that of their bias included.
        key_moment: Second moments of keys, without a constant bias.
        value_moment: Second moments of values.
        query_triangle: Triangle of the queries' map.
        key_triangle: Of the keys'.
        value_triangle: Of the values'.
        output_triangle: Of the outputs', without the gain of a norm behind it.
    """

    query: Float32[np.ndarray, "head size width"]
    key: Float32[np.ndarray, "head size width"]
    value: Float32[np.ndarray, "head size width"]
    output: Float32[np.ndarray, "head size width"]
    query_moment: Float[np.ndarray, "head size size"]
    key_moment: Float[np.ndarray, "head size size"]
    value_moment: Float[np.ndarray, "head size size"]
    query_triangle: Float[np.ndarray, "head side size"]
    key_triangle: Float[np.ndarray, "head side size"]
    value_triangle: Float[np.ndarray, "head side size"]
    output_triangle: Float[np.ndarray, "head side size"]


def factor(weights: Weights, layer: int, part: Part) -> Factor:
    """One part of a layer with the norm before it, keys and values once a key head.

    Args:
        weights: The model.
        layer: Which layer.
        part: ``q``, ``k`` or ``v``.
    """
    family = weights.family
    stored = weights.heads(layer, part)
    matrix = stored * weights.gain(layer, family.attention_norm)
    shift = weights.norm_bias(layer, family.attention_norm)
    bias = weights.bias(layer, part)
    total = None if bias is None else bias.astype(np.float64)
    if shift is not None:
        moved = stored.astype(np.float64) @ shift.astype(np.float64)
        total = moved if total is None else total + moved
    if family.is_centred:
        matrix -= matrix.mean(axis=2, keepdims=True)
    return Factor(matrix, total)


def read_attention(weights: Weights, layer: int) -> Reads:
    """All parts of a layer's attention.

    Raises:
        DataFileError: If a tensor is missing or of another shape.
    """
    family, n_repeats = weights.family, weights.architecture.group_size
    query, key, value = (factor(weights, layer, part) for part in ("q", "k", "v"))
    query, key = (
        _normed(one, weights.head_gain(layer, norm))
        for one, norm in ((query, family.q_norm), (key, family.k_norm))
    )
    output = weights.heads(layer, "o")
    # key heads are decomposed once, and then shared
    made = {"q": triangles(query.matrix), "o": triangles(output)}
    made |= {
        name: blend(triangles(one.matrix), n_repeats) for name, one in (("k", key), ("v", value))
    }
    query_moment = grams(made["q"])
    if query.bias is not None:
        query_moment = query_moment + query.bias[:, :, None] * query.bias[:, None, :]
    return Reads(
        query=query.matrix,
        key=blend(key.matrix, n_repeats),
        value=blend(value.matrix, n_repeats),
        output=written(weights, layer, output),
        query_moment=query_moment,
        key_moment=grams(made["k"]),
        value_moment=grams(made["v"]),
        query_triangle=made["q"],
        key_triangle=made["k"],
        value_triangle=made["v"],
        output_triangle=made["o"],
    )


def written(
    weights: Weights, layer: int, output: Float32[np.ndarray, "head size width"]
) -> Float32[np.ndarray, "head size width"]:
    """Outputs of heads as they reach the stream, through the gain of a norm behind them."""
    norm = weights.family.attention_post_norm
    return output if norm is None else output * weights.gain(layer, norm)


def _normed(one: Factor, gain: Float32[np.ndarray, "_"] | None) -> Factor:
    if gain is None:
        return one
    is_shared = gain.size != one.matrix.shape[1]
    # a bias before the norm is small beside the queries; after it there is none
    return Factor(normalised(one.matrix, gain, is_shared=is_shared), None)
