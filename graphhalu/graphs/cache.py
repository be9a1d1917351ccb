"""Built graphs on disk: plain arrays, one file a trace, named by what they were made of.

A file is safetensors with a checksum of its content in the header. One that does not fit its
checksum counts as absent: the graphs are built again and it is written anew.
"""

import hashlib
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from graphhalu.errors import UsageError
from graphhalu.graphs.build import TokenGraph, build_graphs
from graphhalu.graphs.recipe import GraphRecipe
from graphhalu.safe_read import MALFORMED, parse_json
from graphhalu.traces.lazy import LazyArray
from graphhalu.traces.part import Part
from graphhalu.traces.trace import Trace

FORMAT: Final = "graphhalu-graphs"
FORMAT_VERSION: Final = 1
_ARRAYS: Final = ("x", "edge_index", "edge_attr", "is_answer", "kept_mass")
_TEXTS: Final = ("trace_id", "question_id", "group_id")
_NAMES: Final = ("node_feature_names", "edge_feature_names")


class GraphCache:
    """Graphs of some layers by one recipe, kept in a folder.

    A file is found by the content of the part that the trace lies in (the digests of its commit
    record), the trace, the layers and the recipe: another extraction never meets old graphs.

    Args:
        folder: Made when the first graph is kept.
        layers: Model layers.
        recipe: How edges and node features are chosen.
    """

    def __init__(self, folder: Path, layers: Sequence[int], recipe: GraphRecipe) -> None:
        self.folder, self.layers, self.recipe = folder, tuple(layers), recipe
        plain = json.dumps([FORMAT_VERSION, list(self.layers), recipe.digest()])
        self._digest = hashlib.sha256(plain.encode()).hexdigest()
        self._parts: dict[Path, str] = {}

    def graphs(self, trace: Trace) -> list[TokenGraph]:
        """The graphs of a trace: read, or built and kept.

        Raises:
            UsageError: If the trace is of no store, or the folder cannot be written.
            GraphhaluError: As :func:`graphhalu.graphs.build.build_graphs`.
        """
        path = self.path(trace)
        found = _read(path)
        if found is None:
            found = build_graphs(trace, self.layers, self.recipe)
            _write(path, found)
        return found

    def path(self, trace: Trace) -> Path:
        """Where the graphs of a trace are kept.

        Raises:
            UsageError: If the trace is of no store.
        """
        array = next(iter(trace.arrays.values()), None)
        if not isinstance(array, LazyArray):
            message = (
                f"graphs are cached by the store that their trace lies in; trace "
                f"{trace.trace_id!r} is in memory\n  Leave cache=… out, or open a store"
            )
            raise UsageError(message)
        name = hashlib.sha256(f"{self._part(array.part)} {trace.trace_id}".encode()).hexdigest()
        return self.folder / self._digest[:16] / f"{name[:32]}.safetensors"

    def _part(self, part: Part) -> str:
        if part.folder not in self._parts:
            digests = sorted((file, meta["sha256"]) for file, meta in part.commit.files.items())
            self._parts[part.folder] = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
        return self._parts[part.folder]


def _write(path: Path, graphs: Sequence[TokenGraph]) -> None:
    arrays = {
        f"{number}.{name}": _stored(getattr(graph, name))
        for number, graph in enumerate(graphs)
        for name in _ARRAYS
    }
    first = graphs[0]
    said: dict[str, Any] = {name: getattr(first, name) for name in (*_TEXTS, *_NAMES)}
    said["layers"] = [[graph.layer, list(graph.layers)] for graph in graphs]
    about = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **said})
    metadata = {"about": about, "crc32": str(_checksum(about, arrays))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        with os.fdopen(handle, "wb") as file:
            file.write(save(arrays, metadata))
        Path(aside).replace(path)
    except OSError as error:
        message = f"graphs cannot be kept in {path.parent}: {error.strerror}"
        raise UsageError(message) from None


def _read(path: Path) -> list[TokenGraph] | None:
    """What a file holds, or ``None`` if there is none that is whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    try:
        (size,) = struct.unpack("<Q", content[:8])
        metadata = parse_json(content[8 : 8 + size])["__metadata__"]
        arrays = load(content)
        about = parse_json(metadata["about"])
        if int(metadata["crc32"]) != _checksum(metadata["about"], arrays):
            return None
        return [_graph(number, arrays, about) for number in range(len(about["layers"]))]
    except (SafetensorError, *MALFORMED):
        return None


def _graph(number: int, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> TokenGraph:
    layer, layers = about["layers"][number]
    values: dict[str, Any] = {name: arrays[f"{number}.{name}"] for name in _ARRAYS}
    values["edge_index"] = values["edge_index"].astype(np.int64)
    values |= {name: about[name] for name in _TEXTS}
    values |= {name: tuple(about[name]) for name in _NAMES}
    return TokenGraph(
        **values,
        layer=layer,
        layers=tuple(layers),
    )


def _stored(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int32) if values.dtype == np.int64 else values


def _checksum(about: str, arrays: Mapping[str, np.ndarray]) -> int:
    value = zlib.crc32(about.encode())
    for name in sorted(arrays):
        value = zlib.crc32(f"{name}{arrays[name].shape}{arrays[name].dtype}".encode(), value)
        value = zlib.crc32(np.ascontiguousarray(arrays[name]).data.cast("B"), value)
    return value
