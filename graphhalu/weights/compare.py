"""Two profiles side by side: two models, or one model stored in two ways."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr

from graphhalu.core.errors import UsageError
from graphhalu.weights.tables import HEAD_DESCRIPTIONS, LAYER_DESCRIPTIONS, WeightProfile

_LEAST: Final = 3


@dataclass(frozen=True)
class ComparedQuantity:
    """One quantity in both profiles.

    Attributes:
        level: ``head`` or ``layer``.
        first: Median of the first profile.
        second: Median of the second.
        correlation: Spearman's, head by head or layer by layer; NaN where shapes differ.
        change: Median of ``|second - first|`` over the median of ``|first|``; NaN as above.
    """

    quantity: str
    level: str
    first: float
    second: float
    correlation: float
    change: float


@dataclass(frozen=True)
class ProfileComparison:
    """Two profiles side by side.

    Attributes:
        names: Names of the models.
        rows: Every quantity.
        is_same_shape: Whether layers and heads correspond.
        warnings: What storage types make doubtful.
        zeros: Mean share of exact zeros of each part, where both sides store it in one and the
            same type.
        refused: Parts whose zeros are not compared, with the reason.
    """

    names: tuple[str, str]
    rows: tuple[ComparedQuantity, ...]
    is_same_shape: bool
    warnings: tuple[str, ...]
    zeros: Mapping[str, tuple[float, float]]
    refused: Mapping[str, str]


def compare_profiles(first: WeightProfile, second: WeightProfile) -> ProfileComparison:
    """Compare every quantity of two profiles, and say where storage types forbid it.

    Raises:
        UsageError: If they were made with other settings.
    """
    if dict(first.settings) != dict(second.settings):
        names = [key for key in first.settings if first.settings[key] != second.settings.get(key)]
        raise UsageError(
            f"the profiles were made with different settings ({', '.join(names)})\n"
            f"  Profile one of them again"
        )
    is_same = (first.n_layers, first.n_heads) == (second.n_layers, second.n_heads)
    both = (first, second)
    rows = [
        _row(name, "head", *(profile.of_heads(name).ravel() for profile in both), is_same=is_same)
        for name in HEAD_DESCRIPTIONS
        if all(name in profile.heads.column_names for profile in both)
    ]
    rows += [
        _row(name, "layer", *(profile.of_layers(name) for profile in both), is_same=is_same)
        for name in LAYER_DESCRIPTIONS
    ]
    zeros, refused = _zeros(first, second)
    return ProfileComparison(
        names=(first.name, second.name),
        rows=tuple(rows),
        is_same_shape=is_same,
        warnings=tuple(_warnings(first, second)),
        zeros=zeros,
        refused=refused,
    )


def _row(
    name: str, level: str, first: Float[np.ndarray, "a"], second: Float[np.ndarray, "b"], *, is_same: bool
) -> ComparedQuantity:
    correlation = change = float("nan")
    if is_same:
        both = np.isfinite(first) & np.isfinite(second)
        one, other = first[both], second[both]
        if len(one) >= _LEAST and np.ptp(one) > 0 and np.ptp(other) > 0:
            correlation = float(spearmanr(one, other).statistic)
        middle = _median(np.abs(one))
        change = _median(np.abs(other - one)) / middle if middle > 0 else float("nan")
    return ComparedQuantity(name, level, _median(first), _median(second), correlation, change)


def _median(values: Float[np.ndarray, "_"]) -> float:
    there = values[np.isfinite(values)]
    return float(np.median(there)) if len(there) else float("nan")


def _warnings(first: WeightProfile, second: WeightProfile) -> list[str]:
    lines = [
        f"{profile.name} stores {mixed.text()}: differences between its layers may be those of the types"
        for profile in (first, second)
        for mixed in profile.mixed()
    ]
    types, others = first.storage_types(), second.storage_types()
    differing = [
        f"{part} as {'/'.join(sorted(types[part]))} and {'/'.join(sorted(others[part]))}"
        for part in types
        if part != "other" and part in others and set(others[part]) != set(types[part])
    ]
    if differing:
        lines.append(f"the two store parts in different types: {'; '.join(differing)}")
    return lines


def _zeros(
    first: WeightProfile, second: WeightProfile
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    zeros, refused = {}, {}
    types, others = first.storage_types(), second.storage_types()
    for part in sorted((types.keys() & others.keys()) - {"other"}):
        kinds = sorted({*types[part], *others[part]})
        if len(kinds) > 1:
            refused[part] = f"stored as {', '.join(kinds)}: types differ in having a zero"
        else:
            zeros[part] = (_mean_zeros(first, part), _mean_zeros(second, part))
    return zeros, refused


def _mean_zeros(profile: WeightProfile, part: str) -> float:
    shares = [
        row["zero_fraction"]
        for row in profile.tensors.select(["part", "zero_fraction"]).to_pylist()
        if row["part"] == part and row["zero_fraction"] is not None
    ]
    return float(np.mean(shares)) if shares else float("nan")
