"""Readers of trace stores and of what lies in and beside them: labels, features, graphs."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.malformed.table import Reader, Target

STORE = "a.zarr"
PART = f"{STORE}/parts/000000"


def make_store(folder: Path) -> None:
    """Three planted traces with labels and features."""
    import numpy as np

    from graphhalu.features.table import write_features
    from graphhalu.labels.planted import PLANTED_SHAPE, planted_trace
    from graphhalu.labels.registry import make_labeller
    from graphhalu.labels.run import label_store
    from graphhalu.traces.store import TraceStore

    generator = np.random.default_rng(0)
    traces = [planted_trace(number, generator) for number in range(3)]
    store = TraceStore.create(
        folder / STORE,
        configuration={"model": {"name": "planted"}},
        shape=PLANTED_SHAPE,
        arrays=list(traces[0].arrays),
        provenance={},
    )
    with store.writer() as writer:
        ids = [trace.record.question_id for trace in traces]
        writer.write_part(0, traces, ids)
    for left in (folder / STORE).glob(".lock*"):
        left.unlink()
    label_store(TraceStore.open(folder / STORE), make_labeller("match"))
    write_features(store, ["sink_mass_k4"], folder / "features.parquet")


def _store_of(path: Path) -> Path:
    return next(above for above in (path, *path.parents) if above.name == STORE)


def read_store(path: Path) -> Any:
    """Everything that a store says and holds."""
    from graphhalu.traces.store import open_traces
    from graphhalu.traces.verify import describe_store

    place = _store_of(path)
    store = open_traces(place)
    described = describe_store(place)
    if len(store) < 2:  # without its commit record a part is none; verify says that it is lost
        return verify(path)
    trace = store[1]
    views = [str(store.records), trace.attention(0), trace.hidden(1)]
    return json.dumps(described, default=str, sort_keys=True), [_digest(v) for v in views]


def verify(path: Path) -> Any:
    from graphhalu.core.errors import CorruptStoreError
    from graphhalu.traces.verify import verify_store

    problems = verify_store(_store_of(path))
    if problems:
        raise CorruptStoreError(problems[0]["what"])
    return problems


def read_store_labels(path: Path) -> Any:
    from graphhalu.labels.run import read_labels
    from graphhalu.traces.store import open_traces

    found = read_labels(open_traces(_store_of(path)), "match")
    return (
        found.trace_ids,
        found.values.tolist(),
        found.is_valid.tolist(),
        found.reasons,
        found.settings,
        found.meaning,
    )


def read_feature_table(path: Path) -> Any:
    from graphhalu.features.table import read_features

    found = read_features(path)
    return found.trace_ids, found.columns, found.values.tolist(), dict(found.metadata)


def make_graphs(folder: Path) -> None:
    import numpy as np

    from graphhalu.graphs.edges import GraphRecipe, TopK
    from graphhalu.graphs.storage import GraphStorage, _write
    from graphhalu.labels.planted import planted_trace

    storage = GraphStorage((0, 2), GraphRecipe(edges=TopK(2)))
    storage.get([planted_trace(0, np.random.default_rng(0))], 0)
    _write(folder / "g.safetensors", storage._blocks[0])


def read_graphs(path: Path) -> Any:
    """Graphs of the cache; a damaged file counts as absent, and they are built again."""
    from graphhalu.core.errors import DataFileError
    from graphhalu.graphs.storage import _read

    block = _read(path)
    if block is None:
        raise DataFileError("absent")
    graphs = [block.graph(number) for number in range(2)]
    return (
        block.names,
        block.question_ids,
        [
            [_digest(graph[name].numpy()) for name in ("x", "edge_index", "edge_attr", "span")]
            for graph in graphs
        ],
    )


def make_scores(folder: Path) -> None:
    rows = [{"row": n, "id": None, "question": f"q{n}", "threshold": 0.5} for n in range(3)]
    (folder / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_scores(path: Path) -> Any:
    from graphhalu.scoring.batch import finished_rows

    return finished_rows(path)


def seal_store(path: Path) -> None:
    """Make digests fit: of an array's file in the commit record, then of the record or the root."""
    folder = next((p for p in path.parents if p.parent.name == "parts"), None)
    if folder is None:
        _seal(path, lambda plain: plain["attributes"], ensure_ascii=True)
        return
    commit = folder / "commit.json"
    if path != commit:
        plain = json.loads(commit.read_bytes())
        content = path.read_bytes()
        plain["files"][path.relative_to(folder).as_posix()] = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        commit.write_text(json.dumps(plain, indent=1))
    _seal(commit, lambda plain: plain, ensure_ascii=False)


def _seal(path: Path, of: Callable[[Any], Any], *, ensure_ascii: bool) -> None:
    plain = json.loads(path.read_bytes())
    held = of(plain)
    held.pop("digest", None)
    text = json.dumps(held, sort_keys=True, ensure_ascii=ensure_ascii)
    held["digest"] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    path.write_text(json.dumps(plain, indent=1))


def _digest(values: Any) -> Any:
    if isinstance(values, str):
        return values
    return SimpleNamespace(shape=values.shape, crc=hashlib.sha256(values.tobytes()).hexdigest())


def _checked(file: str, kind: str = "bytes") -> Target:
    return Target(file, kind, is_checked=True, seal=seal_store)


STORE_TARGETS = (
    _checked(f"{STORE}/zarr.json", "json"),
    Target(f"{STORE}/parts/zarr.json", "json"),
    _checked(f"{PART}/commit.json", "json"),
    _checked(f"{PART}/hidden/zarr.json", "json"),
    _checked(f"{PART}/token_offsets/zarr.json", "json"),
    _checked(f"{PART}/records/zarr.json", "json"),
    _checked(f"{PART}/records/c/0"),
    _checked(f"{PART}/token_offsets/c/0"),
    _checked(f"{PART}/hidden/c/0/0/0"),
    _checked(f"{PART}/attention/zarr.json", "json"),
)

STORE_READERS = (
    Reader("trace store", make_store, read_store, STORE_TARGETS, n_slice=60),
    Reader("verify", make_store, verify, STORE_TARGETS[:6], n_slice=25),
    Reader("labels", make_store, read_store_labels, (Target(f"{STORE}/labels/match.parquet", "parquet"),)),
    Reader("features", make_store, read_feature_table, (Target("features.parquet", "parquet"),)),
    Reader(
        "graph cache", make_graphs, read_graphs, (Target("g.safetensors", "safetensors", is_checked=True),)
    ),
    Reader("score output", make_scores, read_scores, (Target("out.jsonl", "lines"),), writes=True),
)
