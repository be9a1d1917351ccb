"""How much the two blocks of a layer make of a normalised input."""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import erf, expit

from graphhalu.registry import unknown_name

Vector = Float[np.ndarray, "..."]


class Gain(NamedTuple):
    """Norm of what a block gives, over that of its normalised input.

    Attributes:
        value: The ratio.
        is_estimate: Whether inputs were drawn or linearised; a norm behind the block fixes the
            gain exactly.
    """

    value: float
    is_estimate: bool


def _gelu(x: Vector) -> Vector:
    found: Vector = 0.5 * x * (1 + erf(x / np.sqrt(2)))
    return found


def _gelu_tanh(x: Vector) -> Vector:
    found: Vector = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return found


ACTIVATIONS: Final[dict[str, Callable[[Vector], Vector]]] = {
    "silu": lambda x: x * expit(x),
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0.0),
}


def activation(name: str) -> Callable[[Vector], Vector]:
    """An activation by its name in transformers.

    Raises:
        UnknownNameError: If it is none of those known here.
    """
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def attention_gain(
    value: Float[np.ndarray, "kv_head size width"],
    output: Float[np.ndarray, "head size width"],
    n_keys: int,
) -> Gain:
    """Gain of attention that is spread evenly over ``n_keys`` independent inputs.

    Exact for them: the mean of ``n`` inputs with unit second moment has ``||W_OV||_F / sqrt(n)``.

    Args:
        value: ``W_V Gamma`` of each key head.
        output: Transposed columns of ``W_O`` of each query head.
        n_keys: Keys that are seen.
    """
    n_kv, size, width = value.shape
    # heads of a group see the same values, and under even attention give them the same weight
    summed = output.reshape(n_kv, -1, size, width).sum(axis=1).reshape(-1, width)
    total = summed.T @ value.reshape(-1, width)
    norm = float(np.linalg.norm(np.linalg.norm(total, axis=1).astype(np.float64)))
    return Gain(norm / np.sqrt(n_keys * width), is_estimate=True)


def post_norm_gain(gain: Float[np.ndarray, "width"]) -> Gain:
    """Gain of a block behind which a norm stands: that of the norm, whatever the block does."""
    return Gain(float(np.sqrt(np.square(gain, dtype=np.float64).mean())), is_estimate=False)


def isotropic_inputs(width: int, n_samples: int, seed: int) -> Float[np.ndarray, "sample width"]:
    """Normal inputs scaled to the norm that RMSNorm gives."""
    drawn = np.random.default_rng(seed).standard_normal((n_samples, width), dtype=np.float32)
    norm = np.sqrt(np.square(drawn).mean(axis=1, keepdims=True))
    normed: Float[np.ndarray, "sample width"] = drawn / norm
    return normed


def output_gain(outputs: Float[np.ndarray, "sample width"]) -> Gain:
    """Mean norm of a block's outputs, over that of normalised inputs; an estimate."""
    norms = np.sqrt(np.square(outputs, dtype=np.float64).mean(axis=1))
    return Gain(float(norms.mean()), is_estimate=True)
