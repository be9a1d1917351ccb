"""A store in numbers: shapes, sizes, counts, configuration."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import open_traces


def describe_store(path: Path | str) -> dict[str, Any]:
    """What a store holds, as plain values; no trace array is read.

    Raises:
        StoreNotFoundError: If there is none.
    """
    store = open_traces(path)
    n_bytes = store.n_bytes()
    lengths = np.array([record.length for record in store.records], dtype=np.int64)
    return {
        "path": store.name,
        "n_traces": len(store),
        "n_questions": len({record.question_id for record in store.records}),
        "n_parts": len(store.parts),
        "is_being_written": store.place.is_locked(),
        "failures": dict(Counter(failure["reason"] for failure in store.failures)),
        "tokens": (
            {"min": lengths.min(), "median": float(np.median(lengths)), "max": lengths.max()}
            if len(lengths)
            else None
        ),
        "n_bytes": sum(n_bytes.values()),
        "bytes_a_trace": sum(n_bytes.values()) / len(store) if len(store) else None,
        "arrays": {
            name: {
                "axes": [_axis(store.shape, axis) for axis in ARRAYS[name].axes],
                "dtype": _format(name),
                "n_bytes": n_bytes[name],
            }
            for name in store.arrays
        },
        "labels": sorted(file.stem for file in store.labels_folder.glob("*.parquet")),
        "configuration": store.configuration,
        "provenance": store.provenance,
    }


def _axis(shape: Any, axis: str) -> str:
    try:
        return f"{axis} {shape.axis_size(axis)}"
    except KeyError:
        return axis


def _format(name: str) -> str:
    spec = ARRAYS[name]
    return spec.dtype if spec.encoding == "plain" else spec.encoding
