"""Features of one answer as maps of layers and heads, and as plain numbers."""

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float32

from graphhalu.features.block import TraceBlock, block_of
from graphhalu.features.registry import FeatureSpec, available_features
from graphhalu.traces.trace import Trace

MOST_SHEETS: Final = 6
"""Maps that a feature with a third axis gives, as one for each of the six spans."""

MOST_AXES: Final = 3

Picks = Literal["head", "kv_head", "layer", "nothing"]
"""What a cell of a map chooses: its head, the heads that share its keys, its layer, nothing."""


def default_features(arrays: Sequence[str]) -> tuple[FeatureSpec, ...]:
    """Every feature of an answer that these arrays give without reading whole matrices.

    Features across beams are left out: one answer alone has no others beside it.
    """
    names = [name for name in available_features(arrays) if not name.startswith("beam_")]
    specs = [FeatureSpec(name) for name in names]
    return tuple(spec for spec in specs if len(spec.feature.axes) <= MOST_AXES)


def feature_maps(
    trace: Trace, specs: Sequence[FeatureSpec]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The features of one answer, as a page gets them; those without any value are left out.

    Returns:
        Maps over two axes: ``name`` (behind a point the entry of a third axis), ``summary``,
        ``direction``, the names of ``rows`` and ``columns``, ``values`` with NaN for missing ones,
        and what a cell ``picks``. And features that are one number: ``name``, ``summary``, ``value``.

    Raises:
        UsageError: If a feature has one value a row of attention.
        TraceNotFoundError: If the trace does not keep what a feature reads.
    """
    block = block_of([trace])
    found = [each for spec in specs for each in _of_feature(spec, block)]
    return [each for each in found if "rows" in each], [each for each in found if "value" in each]


def _of_feature(spec: FeatureSpec, block: TraceBlock) -> list[dict[str, Any]]:
    feature, columns = spec.feature, spec.compute(block)
    axes = [axis for axis in feature.axes if axis not in spec.reduction]
    values = columns.values[0]
    if not np.isfinite(values).any():
        return []
    if not axes:
        return [{"name": str(spec), "summary": feature.summary, "value": float(values[0])}]
    # names of the entries of each axis, in order, from those of the columns
    parts = [name.split(".")[-len(axes) :] for name in columns.columns]
    rows, names, others = [*(list(dict.fromkeys(axis)) for axis in zip(*parts, strict=True)), [""], [""]][:3]
    sheets = values.reshape(len(rows), len(names), -1)
    told = {"summary": feature.summary, "direction": feature.direction, "rows": rows, "columns": names}
    return [
        {
            "name": f"{spec}.{other}" if other else str(spec),
            **told,
            "picks": _picks(axes),
            "values": np.ascontiguousarray(sheets[..., place]),
        }
        for place, other in enumerate(others[:MOST_SHEETS])
        if _says_something(sheets[..., place], is_entry=bool(other))
    ]


def _says_something(sheet: Float32[np.ndarray, "row column"], *, is_entry: bool) -> bool:
    """Whether there is a value; an entry that is 0 throughout, as an absent span, has none."""
    there = sheet[np.isfinite(sheet)]
    return bool(there.any() if is_entry else there.size)


def _picks(axes: Sequence[str]) -> Picks:
    if axes[0] != "layer":
        return "nothing"
    if len(axes) > 1 and axes[1] in ("head", "kv_head"):
        return "head" if axes[1] == "head" else "kv_head"
    return "layer"
