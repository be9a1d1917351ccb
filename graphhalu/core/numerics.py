"""Small exact computations that several stages share."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num


def ragged_offsets(lengths: Int[np.ndarray, "item"]) -> Int[np.ndarray, "offset"]:
    """Start of each item in a concatenated axis, with the end of the last one."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def group_multiplicities(
    n_groups: int, n_resamples: int, generator: np.random.Generator
) -> Int[np.ndarray, "resample group"]:
    """How often each group is drawn when ``n_groups`` are drawn with replacement."""
    drawn = generator.integers(n_groups, size=(n_resamples, n_groups))
    cells = drawn + n_groups * np.arange(n_resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=n_resamples * n_groups)
    return counts.reshape(n_resamples, n_groups)


def auroc(values: Float[np.ndarray, "item"], labels: Num[np.ndarray, "item"]) -> float:
    """Share of pairs in which the item of label 1 has the higher value; ties count half.

    Both classes must be there, and all values known.
    """
    from scipy.stats import rankdata  # takes a second to import

    n_positive = int(labels.sum())
    won = rankdata(values)[labels == 1].sum() - n_positive * (n_positive + 1) / 2
    return float(won / (n_positive * (len(labels) - n_positive)))


def benjamini_hochberg(p_values: Float[np.ndarray, "*cell"]) -> Float[np.ndarray, "*cell"]:
    """p-values adjusted for false discoveries; NaN stays NaN and does not count as a test.

    The tests below ``q`` are a set in which at most a share ``q`` is expected to be false
    discoveries.

    Source:
        Benjamini & Hochberg 1995, doi:10.1111/j.2517-6161.1995.tb02031.x.
    """
    from scipy.stats import false_discovery_control  # takes a second to import

    is_known, adjusted = ~np.isnan(p_values), np.full(p_values.shape, np.nan)
    adjusted[is_known] = false_discovery_control(p_values[is_known])
    return adjusted


def length_adjusted(
    values: Float[np.ndarray, "answer"], lengths: Float[np.ndarray, "answer length"]
) -> Float[np.ndarray, "answer"]:
    """Residuals of a measure after a least-squares fit on the logarithms of some lengths.

    The fit sees no label. It has a constant, each logarithm and its square.

    Args:
        values: Finite values of a measure.
        lengths: Lengths of each answer in tokens, at least 1.
    """
    logs = np.log(lengths)
    design = np.concatenate([np.ones((len(values), 1)), logs, logs**2], axis=1)
    fitted, *_ = np.linalg.lstsq(design, values, rcond=None)
    left: Float[np.ndarray, "answer"] = values - design @ fitted
    # what the fit explains up to rounding has no order left in it
    left[np.abs(left) < 1e-9 * max(1.0, float(np.abs(values).max()))] = 0.0
    return left


def json_ready(value: Any) -> Any:
    """Plain Python values for JSON, records too; a number that is not finite becomes ``None``."""
    if is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, np.ndarray):
        return json_ready(value.tolist())
    if isinstance(value, np.generic):
        return json_ready(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def numbers_of(values: Any) -> Float[np.ndarray, "..."]:
    """Nested lists of a JSON file as numbers; ``null`` becomes NaN."""
    return np.array(values, dtype=np.float64)
