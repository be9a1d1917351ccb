"""The profile of a model: every tensor, every head slice, every circuit, layer by layer."""

from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from graphhalu.core.provenance import provenance
from graphhalu.engine.executors import Progress, no_progress
from graphhalu.weights.layer import Columns, LowerLayer, ProfileSettings, profile_layer
from graphhalu.weights.read import PARTS, Weights
from graphhalu.weights.spectra import Spectrum, entries_of, gram, gram_of_columns, spectrum_of_gram
from graphhalu.weights.storage import CHUNK_BYTES, StoredTensor
from graphhalu.weights.tables import NOTES, WeightProfile, table_of, table_of_rows

_CHUNKED_BYTES: Final = 4 * CHUNK_BYTES
"""Float32 bytes from which a tall matrix is never held whole."""
_SLICE_COLUMNS: Final = (
    *("layer", "part", "head", "frobenius", "rms", "kurtosis", "outlier", "n_not_finite"),
    *("sigma_max", "stable_rank", "entropy_rank", "tail_alpha"),
)


def profile_model(
    weights: Weights, settings: ProfileSettings | None = None, on_progress: Progress = no_progress
) -> WeightProfile:
    """Profile a model from its weights alone.

    Args:
        weights: An opened model.
        settings: What to compute.
        on_progress: Called after each tensor and layer.

    Raises:
        DataFileError: If a tensor is missing, damaged or of another shape.
    """
    settings = settings or ProfileSettings()
    n_tensors, n_layers = len(weights.tensors), weights.architecture.n_layers
    total = n_tensors + n_layers + 1
    tensors = []
    for done, tensor in enumerate(weights.tensors.values()):
        on_progress(done, total)
        tensors.append(_tensor_row(weights, tensor, is_full=settings.spectra == "full"))
    on_progress(n_tensors, total)
    words = _word_products(weights)
    heads: list[Columns] = []
    layers: list[dict[str, Any]] = []
    pairs: list[Columns] = []
    slices: list[dict[str, Any]] = []
    below: deque[LowerLayer] = deque(maxlen=settings.composition_reach or 1)
    for layer in range(n_layers):
        on_progress(n_tensors + 1 + layer, total)
        columns, numbers, composition = profile_layer(weights, layer, words, below, settings)
        heads.append(columns)
        layers.append(numbers)
        pairs += composition
        slices += _slice_rows(weights, layer)
    on_progress(total, total)
    return WeightProfile(
        model=dict(weights.identity),
        architecture=weights.architecture.values(),
        settings=settings.model_dump(mode="json"),
        provenance=provenance(),
        notes=_notes(weights),
        tensors=table_of_rows(tensors),
        slices=table_of_rows(slices),
        heads=pa.concat_tables(map(table_of, heads)),
        layers=table_of_rows(_layer_rows(layers, tensors)),
        composition=pa.concat_tables(map(table_of, pairs)) if pairs else table_of({}),
    )


def _word_products(weights: Weights) -> Float[np.ndarray, "width width"]:
    """``E' U Gamma_final``, summed over words chunk by chunk."""
    embedding, unembedding = weights.embedding, weights.unembedding
    gain, width = weights.final_gain(), weights.architecture.hidden_size
    total = np.zeros((width, width), dtype=np.float32)
    step = max(1, CHUNK_BYTES // (4 * width))
    n_words = min(embedding.shape[0], unembedding.shape[0])
    for start in range(0, n_words, step):
        stop = min(start + step, n_words)
        rows = embedding.load(start, stop)
        other = rows if unembedding is embedding else unembedding.load(start, stop)
        total += rows.T @ (other * gain)
    return total


def _tensor_row(weights: Weights, tensor: StoredTensor, *, is_full: bool) -> dict[str, Any]:
    """Entries and spectrum of a stored tensor."""
    layer, part = weights.role(tensor.name)
    found = Spectrum()
    is_matrix = len(tensor.shape) == 2 and min(tensor.shape) > 1  # noqa: PLR2004
    if is_matrix and 4 * tensor.n_values > _CHUNKED_BYTES and tensor.shape[0] >= tensor.shape[1]:
        products: Any = 0.0

        def counted() -> Iterator[np.ndarray]:
            nonlocal products
            for chunk in tensor.chunks():
                products = products + gram_of_columns(chunk)
                yield chunk

        entries = entries_of(counted())
        found = spectrum_of_gram(products, is_full=is_full)
    else:
        whole = tensor.read()
        entries = entries_of([whole])
        if is_matrix and not entries["n_not_finite"]:
            products = gram(whole)
            del whole
            found = spectrum_of_gram(products, is_full=is_full)
    return {
        "name": tensor.name,
        "part": part,
        "layer": layer,
        "storage": tensor.storage,
        "shape": " x ".join(map(str, tensor.shape)),
        "n_values": tensor.n_values,
        "n_bytes": tensor.n_bytes,
        **entries,
        **found._asdict(),
    }


def _slice_rows(weights: Weights, layer: int) -> list[dict[str, Any]]:
    """Entries and spectrum of every head's slice of the projections of a layer."""
    rows = []
    for part in PARTS:
        for head, values in enumerate(weights.heads(layer, part)):
            known = {"layer": layer, "part": part, "head": head}
            numbers = entries_of([values]) | spectrum_of_gram(gram(values))._asdict()
            rows.append({name: (known | numbers)[name] for name in _SLICE_COLUMNS})
    return rows


def _layer_rows(layers: list[dict[str, Any]], tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Layers with quantities of their tensors, and value norms relative to the median layer."""
    middle = float(np.median([row["value_norm"] for row in layers]))
    rows = []
    for row in layers:
        own = [t for t in tensors if t["layer"] == row["layer"] and np.isfinite(t["sigma_max"])]
        alphas = [t["tail_alpha"] for t in own if np.isfinite(t["tail_alpha"])]
        norms = {t["part"]: t["frobenius"] for t in own}
        gate, up, down, q, k = (norms.get(part, np.nan) for part in ("gate", "up", "down", "q", "k"))
        more = {
            "value_amplification": row["value_norm"] / middle if middle > 0 else np.nan,
            "tail_alpha": float(np.mean(alphas)) if alphas else np.nan,
            "outlier": max((t["outlier"] for t in own), default=np.nan),
            "dominance": float(gate * up * down / np.sqrt(q * k)),
        }
        rows.append(row | more)
    return rows


def _notes(weights: Weights) -> tuple[str, ...]:
    found, family = weights.architecture, weights.family
    ropes = sorted({rope.scaling for rope in found.ropes if not rope.is_modelled})
    holds = {
        "q_norm": family.q_norm is not None,
        "post_norm": family.attention_post_norm is not None,
        "no_norm": family.attention_norm is None,
        "softcap": found.softcap is not None,
        "rope": bool(ropes),
        "experts": family.up is None,
    }
    values = {"softcap": found.softcap, "ropes": ", ".join(ropes)}
    return tuple(NOTES[name].format(**values) for name, is_true in holds.items() if is_true)
