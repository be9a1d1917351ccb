"""Gains of the two blocks of a layer on a normalised input.

A gain is the norm of what a block gives, over that of its normalised input.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.special import erf, expit

from graphhalu.core.registry import unknown_name

Vector = Float[np.ndarray, "..."]


def _gelu_tanh(x: Vector) -> Vector:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: Final[dict[str, Callable[[Vector], Vector]]] = {
    "silu": lambda x: x * expit(x),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
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
    value: Float[np.ndarray, "kv_head size width"], output: Float[np.ndarray, "head size width"], n_keys: int
) -> float:
    """Gain of attention that is spread evenly over ``n_keys`` independent inputs; an estimate.

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
    return float(norm / np.sqrt(n_keys * width))


def rms(values: Float[np.ndarray, "..."]) -> float:
    """Root mean square; of the gain of a norm behind a block, the exact gain of the block."""
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def isotropic_inputs(width: int, n_samples: int, seed: int) -> Float[np.ndarray, "sample width"]:
    """Normal inputs scaled to the norm that RMSNorm gives."""
    drawn = np.random.default_rng(seed).standard_normal((n_samples, width), dtype=np.float32)
    return drawn / np.sqrt(np.square(drawn).mean(axis=1, keepdims=True))


def output_gain(outputs: Float[np.ndarray, "sample width"]) -> float:
    """Mean norm of a block's outputs, over that of normalised inputs; an estimate."""
    return float(np.sqrt(np.square(outputs, dtype=np.float64).mean(axis=1)).mean())
