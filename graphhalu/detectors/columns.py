"""Features of traces as one matrix, for detectors that learn from columns."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float

from graphhalu.core.config import config_hash
from graphhalu.core.errors import DetectorMismatchError, TraceNotFoundError
from graphhalu.features.block import PlacedBlock, blocks
from graphhalu.features.matrix import REMEMBERED, block_columns
from graphhalu.features.registry import FeatureMatrix, FeatureSpec, reads_beams
from graphhalu.traces.schema import TraceShape
from graphhalu.traces.trace import Trace

COMPARED_FIELDS: Final = (
    *("n_layers", "n_heads", "n_kv_heads", "hidden_size"),
    *("attention_layers", "hidden_layers"),
)
"""What must agree between the traces that a detector was fitted on and those that it scores."""


class Layout(NamedTuple):
    """The columns of one feature.

    Attributes:
        feature: The feature with its parameters, as :class:`FeatureSpec` writes it.
        n_columns: How many it has.
        digest: Of their names.
    """

    feature: str
    n_columns: int
    digest: str


@dataclass(frozen=True)
class Columns:
    """Features side by side.

    Attributes:
        values: NaN where missing; all NaN for a trace that lacks what a feature reads.
        names: Such as ``sink_mass_k1.l03.h05``.
        layout: The columns of each feature.
    """

    values: Float[np.ndarray, "trace column"]
    names: tuple[str, ...]
    layout: tuple[Layout, ...]


def columns_of(
    traces: Sequence[Trace],
    specs: Sequence[FeatureSpec],
    expected: Sequence[Layout] = (),
    *,
    unused: Collection[str] = (),
) -> Columns:
    """Features of traces of one model.

    Args:
        traces: At least one.
        specs: Which features.
        expected: The columns that a fitted detector knows, one entry a feature; a feature that
            none of these traces has then still has its columns, all missing.
        unused: Those of the expected features that need not be computed: missing, too.

    Raises:
        UnknownNameError: If there is no such feature.
        DetectorMismatchError: If the traces come from models of different shapes, or a feature
            has other columns than expected.
    """
    one_shape(traces)
    found: dict[str, list[tuple[PlacedBlock, FeatureMatrix]]] = {str(spec): [] for spec in specs}
    # all features of a block while its arrays are decoded
    for placed in _alike_blocks(traces, reads_beams(specs)):
        for spec in specs:
            if str(spec) in unused:
                continue
            try:
                found[str(spec)].append((placed, block_columns(placed.block, (spec,), REMEMBERED)))
            except TraceNotFoundError:  # all traces of the block lack what the feature reads
                continue
    known = {layout.feature: layout for layout in expected}
    parts = [_joined(len(traces), key, pieces, known.get(key)) for key, pieces in found.items()]
    return Columns(
        np.concatenate([part.values for part in parts], axis=1),
        tuple(name for part in parts for name in part.names),
        tuple(layout for part in parts for layout in part.layout),
    )


def one_shape(traces: Sequence[Trace]) -> TraceShape:
    """The shape that all these traces have.

    Raises:
        DetectorMismatchError: If they have several.
    """
    shape = traces[0].shape
    for trace in traces:
        if trace.shape is not shape:
            check_shape(trace, describe_shape(shape))
    return shape


def describe_shape(shape: TraceShape) -> dict[str, Any]:
    """What a detector remembers of the model's shape; plain JSON values."""
    values = {name: getattr(shape, name) for name in COMPARED_FIELDS}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def check_shape(trace: Trace, expected: Mapping[str, Any]) -> None:
    """Refuse a trace of a model of another shape.

    Raises:
        DetectorMismatchError: Names the fields.
    """
    came = describe_shape(trace.shape)
    differing = [name for name in COMPARED_FIELDS if came[name] != expected.get(name)]
    if differing:
        told = "; ".join(f"{name} {expected.get(name)}, got {came[name]}" for name in differing)
        raise DetectorMismatchError(
            f"trace {trace.trace_id!r} has another shape than the detector was fitted on: "
            f"expected {told}\n  Train a detector on traces of that model"
        )


def _joined(
    n_traces: int, feature: str, pieces: Sequence[tuple[PlacedBlock, FeatureMatrix]], expected: Layout | None
) -> Columns:
    """One feature of all traces; missing for those without a piece."""
    if not pieces:
        n_columns = expected.n_columns if expected else 0
        missing = np.full((n_traces, n_columns), np.nan, dtype=np.float32)
        return Columns(missing, (feature,) * n_columns, (expected,) if expected else ())
    names = pieces[0][1].columns
    layout = Layout(feature, len(names), _digest(names))
    if expected is not None and layout != expected:
        raise DetectorMismatchError(
            f"feature {feature!r} has {len(names)} columns from {names[0]!r} on, other than the "
            f"{expected.n_columns} that the detector was fitted on\n  Train it again"
        )
    matrix = np.full((n_traces, len(names)), np.nan, dtype=np.float32)
    for placed, columns in pieces:
        matrix[placed.indices] = columns.values[placed.within]
    return Columns(matrix, names, (layout,))


@lru_cache(maxsize=64)
def _digest(names: tuple[str, ...]) -> str:
    """Remembered, since a hidden state has tens of thousands of names."""
    return config_hash({"names": names})


def _alike_blocks(traces: Sequence[Trace], with_beams: bool) -> list[PlacedBlock]:
    """Blocks of traces that keep the same arrays, so that what one lacks no other one misses."""
    kept: dict[tuple[str, ...], list[int]] = {}
    for index, trace in enumerate(traces):
        kept.setdefault(tuple(trace.arrays), []).append(index)
    return [
        PlacedBlock(placed.block, np.array(indices)[placed.indices], placed.within)
        for indices in kept.values()
        for placed in blocks([traces[index] for index in indices], with_beams=with_beams)
    ]
