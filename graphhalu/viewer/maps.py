"""Features of one answer as maps of layers and heads, and as plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Float32

from graphhalu.features.block import TraceBlock, block_of
from graphhalu.features.registry import FeatureSpec, available_features
from graphhalu.traces.trace import Trace

MOST_SHEETS: Final = 6
"""Maps that a feature with a third axis gives, as one for each of the six spans."""

MOST_AXES: Final = 3

Picks = Literal["head", "kv_head", "layer", "nothing"]


@dataclass(frozen=True)
class FeatureMap:
    """One feature of one answer over two axes.

    Attributes:
        name: The feature, and behind a point the entry of its third axis.
        summary: What it measures.
        direction: What a higher value means.
        rows: Name of each row, as ``l03``.
        columns: Name of each column, as ``h05``; one column without a name where there is no
            second axis.
        values: Missing ones are NaN.
        picks: What a cell chooses: its head, the heads that share its keys, its layer, nothing.
    """

    name: str
    summary: str
    direction: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Float32[np.ndarray, "row column"]
    picks: Picks


@dataclass(frozen=True)
class FeatureNumber:
    """A feature of one answer that is one number."""

    name: str
    summary: str
    direction: str
    value: float


def default_features(arrays: Sequence[str]) -> tuple[FeatureSpec, ...]:
    """Every feature of an answer that these arrays give without reading whole matrices.

    Features across beams are left out: one answer alone has no others beside it.
    """
    names = [name for name in available_features(arrays) if not name.startswith("beam_")]
    specs = [FeatureSpec(name) for name in names]
    return tuple(spec for spec in specs if len(spec.feature.axes) <= MOST_AXES)


def feature_maps(trace: Trace, specs: Sequence[FeatureSpec]) -> tuple[list[FeatureMap], list[FeatureNumber]]:
    """The features of one answer; those without any value are left out.

    Raises:
        UsageError: If a feature has one value a row of attention.
        TraceNotFoundError: If the trace does not keep what a feature reads.
    """
    block = block_of([trace])
    maps: list[FeatureMap] = []
    numbers: list[FeatureNumber] = []
    for spec in specs:
        found = _of_feature(spec, block)
        numbers += [each for each in found if isinstance(each, FeatureNumber)]
        maps += [each for each in found if isinstance(each, FeatureMap)]
    return maps, numbers


def _of_feature(spec: FeatureSpec, block: TraceBlock) -> list[FeatureMap | FeatureNumber]:
    feature = spec.feature
    columns = spec.compute(block)
    axes = [axis for axis in feature.axes if axis not in spec.reduction]
    values = columns.values[0]
    if not np.isfinite(values).any():
        return []
    told = (str(spec), feature.summary, feature.direction)
    if not axes:
        return [FeatureNumber(*told, float(values[0]))]
    labels = _labels(columns.columns, len(axes))
    sizes = [len(each) for each in labels] + [1] * (2 - len(axes))
    sheets = values.reshape(*sizes[:2], -1)
    rows, names = labels[0], labels[1] if len(axes) > 1 else ("",)
    others = labels[2] if len(axes) > 2 else ("",)  # noqa: PLR2004
    return [
        FeatureMap(
            f"{told[0]}.{other}" if other else told[0],
            *told[1:],
            rows,
            names,
            np.ascontiguousarray(sheets[..., place]),
            _picks(axes),
        )
        for place, other in enumerate(others[:MOST_SHEETS])
        if _says_something(sheets[..., place], is_entry=bool(other))
    ]


def _says_something(sheet: Float32[np.ndarray, "row column"], *, is_entry: bool) -> bool:
    """Whether there is a value; an entry that is 0 throughout, as an absent span, has none."""
    there = sheet[np.isfinite(sheet)]
    return bool(there.any() if is_entry else there.size)


def _labels(names: Sequence[str], n_axes: int) -> list[tuple[str, ...]]:
    """Names of the entries of each axis, in order, from those of the columns."""
    parts = [name.split(".")[-n_axes:] for name in names]
    return [tuple(dict.fromkeys(part[axis] for part in parts)) for axis in range(n_axes)]


def _picks(axes: Sequence[str]) -> Picks:
    if axes[0] != "layer":
        return "nothing"
    if len(axes) > 1 and axes[1] in ("head", "kv_head"):
        return "head" if axes[1] == "head" else "kv_head"
    return "layer"
