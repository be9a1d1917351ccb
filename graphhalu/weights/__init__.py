"""What the weights of a model say about its attention, without running it.

``open_weights(name)`` opens an alias, a folder of safetensors, a GGUF file or a hub model and
reads one tensor at a time; the storage type of every tensor is known. ``profile_model`` computes
norms, spectra, and the QK and OV circuits of every head, and ``risk_curve`` sums named
components by layer. All of it is a hypothesis until ``graphhalu weights validate`` has held it
against the running model: see ``graphhalu.studies.weights``.

Nothing here imports torch or transformers: a profile needs little memory.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "WeightProfile": "graphhalu.weights.tables",
    "open_weights": "graphhalu.weights.read",
    "profile_model": "graphhalu.weights.profile",
    "read_profile": "graphhalu.weights.tables",
    "risk_curve": "graphhalu.weights.risk",
}

__all__ = sorted(_EXPORTS)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        message = f"module 'graphhalu.weights' has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(_EXPORTS[name]), name)
