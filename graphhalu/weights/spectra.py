"""Norms, spectra and tails of single matrices; pure functions on arrays.

Scale-free numbers come first, since the scale of a matrix is shared with the norm before it.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import linalg
from scipy.sparse.linalg import LinearOperator, eigsh

SINGLE_FROM: Final = 2048
"""Side from which the Gram matrix is in single precision: its upper spectrum is as good."""
MIN_EIGENVALUES: Final = 50
"""Shortest spectrum that a tail is fitted to."""
MIN_TAIL: Final = 10
_MOST_STARTS: Final = 200
_PIECE: Final = 2**19


class Spectrum(NamedTuple):
    """Ranks of a matrix from its singular values, and the power law of the tail of their squares.

    The law is ``p(x) ~ x^-alpha`` from ``x_min`` on; NaN where it is not fitted.

    Attributes:
        sigma_max: The largest singular value.
        stable_rank: Sum of squares over the largest square.
        entropy_rank: Exponential of the entropy of the squares; NaN if only the largest singular
            value was computed.
        tail_alpha: The exponent.
        tail_sigma: Its standard error.
        tail_distance: Kolmogorov-Smirnov distance of the tail from the law.
        tail_x_min: Where the tail begins.
        n_tail: Eigenvalues in it.
    """

    sigma_max: float = np.nan
    stable_rank: float = np.nan
    entropy_rank: float = np.nan
    tail_alpha: float = np.nan
    tail_sigma: float = np.nan
    tail_distance: float = np.nan
    tail_x_min: float = np.nan
    n_tail: int = 0


def entries_of(chunks: Iterable[Float[np.ndarray, "..."]]) -> dict[str, float]:
    """Statistics of a tensor whose rows come in chunks.

    A chunk is worked on in small pieces: in float64 a whole one would take several times its size.

    Returns:
        ``frobenius`` (root of the sum of squares), ``rms`` (root mean square), ``kurtosis`` (3 for a
        normal), ``outlier`` (largest magnitude over the root mean square), ``zero_fraction`` (of exact
        zeros, which depend on the storage type), ``n_not_finite`` (entries that are left out of the
        rest), ``row_outlier`` and ``column_outlier`` (largest norm over the median one; NaN for a
        vector).
    """
    n_values = n_zeros = n_not_finite = 0
    largest, powers, rows, columns = 0.0, np.zeros(4), [np.zeros(0)], np.zeros(1)
    for piece in (piece for chunk in chunks for piece in _pieces(chunk)):
        is_finite = np.isfinite(piece)
        there = piece.reshape(-1) if is_finite.all() else piece[is_finite]
        n_not_finite += is_finite.size - there.size
        n_values += there.size
        n_zeros += int((there == 0).sum())
        largest = max(largest, float(np.abs(there).max(initial=0.0)))
        wide = there.astype(np.float64)
        squares = wide * wide
        powers += [wide.sum(), squares.sum(), squares @ wide, squares @ squares]
        if piece.ndim > 1:
            squares = np.square(np.where(is_finite, piece, np.float32(0)))
            rows.append(squares.sum(1, dtype=np.float64))
            columns = columns + squares.sum(0, dtype=np.float64)
    one, two, three, four = (powers / max(1, n_values)).tolist()
    variance, rms = two - one**2, float(np.sqrt(two))
    fourth = four - 4 * one * three + 6 * one**2 * two - 3 * one**4
    return {
        "frobenius": float(np.sqrt(powers[1])),
        "rms": rms,
        "kurtosis": fourth / variance**2 if variance > 1e-12 * max(two, 1e-300) else np.nan,
        "outlier": largest / rms if rms > 0 else np.nan,
        "zero_fraction": n_zeros / n_values if n_values else np.nan,
        "n_not_finite": n_not_finite,
        "row_outlier": _over_median(np.concatenate(rows)),
        "column_outlier": _over_median(columns),
    }


def _pieces(values: Float[np.ndarray, "..."]) -> Iterator[Float[np.ndarray, "..."]]:
    """Some rows at a time; axes before the last one become one."""
    if values.ndim < 2:  # noqa: PLR2004
        yield values
        return
    lines = values.reshape(-1, values.shape[-1])
    step = max(1, _PIECE // max(1, lines.shape[1]))
    for start in range(0, len(lines), step):
        yield lines[start : start + step]


def _over_median(squares: Float[np.ndarray, "line"]) -> float:
    middle = float(np.median(squares)) if squares.size else 0.0
    return float(np.sqrt(squares.max() / middle)) if middle > 0 else np.nan


def gram(matrix: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "side side"]:
    """Products of rows or of columns, whichever is the smaller matrix."""
    narrow = matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix
    return gram_of_columns(narrow)


def gram_of_columns(chunk: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "column column"]:
    """Products of the columns."""
    kind = np.float64 if chunk.shape[1] < SINGLE_FROM else np.float32
    wide: np.ndarray = chunk.astype(kind, copy=False)
    return wide.T @ wide


def spectrum_of_gram(products: Float[np.ndarray, "side side"], *, is_full: bool = True) -> Spectrum:
    """Spectrum of a matrix from its Gram matrix, which is overwritten.

    Args:
        products: ``W W'`` or ``W' W``.
        is_full: Whether all singular values are computed; else the largest alone, by Lanczos.
    """
    total = float(np.trace(products, dtype=np.float64))
    if not np.isfinite(total) or total <= 0:
        return Spectrum(0.0 if total == 0 else np.nan)
    if not is_full:
        largest = _largest(products)
        return Spectrum(float(np.sqrt(largest)), total / largest)
    eigenvalues = linalg.eigvalsh(products, overwrite_a=True, check_finite=False)
    return spectrum(np.maximum(eigenvalues.astype(np.float64), 0.0))


def spectrum(squares: Float[np.ndarray, "value"]) -> Spectrum:
    """Ranks and tail of squared singular values.

    Source:
        Stable rank: Rudelson & Vershynin 2007. Entropy rank: Roy & Vetterli 2007.
    """
    total, largest = float(squares.sum()), float(squares.max())
    if largest <= 0:
        return Spectrum(0.0)
    share = squares[squares > 0] / total
    entropy_rank = float(np.exp(-(share * np.log(share)).sum()))
    sigma_max, stable_rank = float(np.sqrt(largest)), total / largest
    tail = power_law(squares)
    return tail._replace(sigma_max=sigma_max, stable_rank=stable_rank, entropy_rank=entropy_rank)


def power_law(eigenvalues: Float[np.ndarray, "value"]) -> Spectrum:
    """Fit a power law to the upper end of a spectrum.

    Args:
        eigenvalues: Not negative; fewer than :data:`MIN_EIGENVALUES` have no tail.

    Returns:
        The fields of the tail; those of the ranks are NaN.

    Source:
        Clauset, Shalizi & Newman 2009, arXiv:0706.1062, as WeightWatcher does: ``alpha = 1 +
        n / sum ln(x / x_min)``, the start with the least Kolmogorov-Smirnov distance, ``sigma =
        (alpha - 1) / sqrt(n)``. Of long spectra 200 starts are tried, evenly spread, not all.
    """
    values = np.sort(eigenvalues[eigenvalues > 0])
    n_starts = len(values) - MIN_TAIL
    if len(values) < MIN_EIGENVALUES or values[0] == values[-1]:
        return Spectrum()
    starts = np.unique(np.linspace(0, n_starts, min(n_starts, _MOST_STARTS)).astype(np.int64))
    found = [fit for start in starts.tolist() if (fit := _fit(values, start)).n_tail]
    return min(found, key=lambda fit: fit.tail_distance, default=Spectrum())


def _fit(values: Float[np.ndarray, "value"], start: int) -> Spectrum:
    tail = values[start:]
    logs = np.log(tail / tail[0])
    if logs.sum() <= 0:
        return Spectrum()
    n_tail = len(tail)
    alpha = 1 + n_tail / float(logs.sum())
    below = 1 - np.exp((1 - alpha) * logs)
    distance = float(np.abs(below - np.arange(n_tail) / n_tail).max())
    sigma = (alpha - 1) / n_tail**0.5
    return Spectrum(np.nan, np.nan, np.nan, alpha, sigma, distance, float(tail[0]), n_tail)


def _largest(products: Float[np.ndarray, "side side"]) -> float:
    if len(products) < 3:  # noqa: PLR2004  # Lanczos needs room
        return float(linalg.eigvalsh(products)[-1])
    operator = LinearOperator(products.shape, matvec=lambda x: products @ x, dtype=products.dtype)
    start = np.ones(len(products), dtype=products.dtype)
    return float(eigsh(operator, k=1, which="LA", v0=start, return_eigenvectors=False)[0])
