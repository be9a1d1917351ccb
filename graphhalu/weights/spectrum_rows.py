"""Entries and spectra of every stored tensor, and of every head's slice of it."""

from typing import Any, Final

from graphhalu.weights.read import PARTS, Weights
from graphhalu.weights.spectra import (
    Spectrum,
    entries_of,
    gram,
    gram_of_columns,
    spectrum_of_gram,
)
from graphhalu.weights.storage import CHUNK_BYTES

_CHUNKED_BYTES: Final = 4 * CHUNK_BYTES
"""Float32 bytes from which a tall matrix is never held whole."""
_NAN: Final = float("nan")


def tensor_row(weights: Weights, name: str, *, is_full: bool) -> dict[str, Any]:
    """What the entries and the spectrum of a tensor are.

    Args:
        weights: An opened model.
        name: Of the tensor, as its file names it.
        is_full: Whether all singular values are found, or the largest alone.

    Raises:
        DataFileError: If the tensor is damaged.
    """
    tensor = weights.files.tensors[name]
    layer, part = weights.role(tensor.name)
    found: Spectrum | None = None
    is_matrix = len(tensor.shape) == 2 and min(tensor.shape) > 1  # noqa: PLR2004
    if is_matrix and 4 * tensor.n_values > _CHUNKED_BYTES and tensor.shape[0] >= tensor.shape[1]:
        products: Any = 0.0

        def counted() -> Any:
            nonlocal products
            for chunk in tensor.chunks():
                products = products + gram_of_columns(chunk)
                yield chunk

        entries = entries_of(counted())
        found = spectrum_of_gram(products, is_full=is_full)
    else:
        whole = tensor.read()
        entries = entries_of([whole])
        if is_matrix and not entries.n_not_finite:
            products = gram(whole)
            del whole
            found = spectrum_of_gram(products, is_full=is_full)
    tail = found.tail if found else None
    return {
        "name": tensor.name, "part": part, "layer": layer, "storage": tensor.storage,
        "shape": " x ".join(map(str, tensor.shape)), "n_values": tensor.n_values,
        "n_bytes": tensor.n_bytes, **entries._asdict(),
        "sigma_max": found.sigma_max if found else _NAN,
        "stable_rank": found.stable_rank if found else _NAN,
        "entropy_rank": found.entropy_rank if found else _NAN,
        "tail_alpha": tail.alpha if tail else _NAN,
        "tail_sigma": tail.sigma if tail else _NAN,
        "tail_distance": tail.distance if tail else _NAN,
        "tail_x_min": tail.x_min if tail else _NAN,
        "n_tail": tail.n_tail if tail else 0,
    }  # fmt: skip


def slice_rows(weights: Weights, layer: int) -> list[dict[str, Any]]:
    """The same of every head's slice of the projections of a layer."""
    rows = []
    for part in PARTS:
        for head, values in enumerate(weights.heads(layer, part)):
            entries = entries_of([values])
            found = spectrum_of_gram(gram(values))
            rows.append(
                {
                    "layer": layer, "part": part, "head": head, "frobenius": entries.frobenius,
                    "rms": entries.rms, "kurtosis": entries.kurtosis, "outlier": entries.outlier,
                    "n_not_finite": entries.n_not_finite, "sigma_max": found.sigma_max,
                    "stable_rank": found.stable_rank, "entropy_rank": found.entropy_rank,
                    "tail_alpha": found.tail.alpha,
                }
            )  # fmt: skip
    return rows
