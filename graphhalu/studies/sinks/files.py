"""Measured sink mass as files: ``<task>__<model>__K<K>__q<mode>.jsonl.gz`` and ``.meta.json``.

One gzip file a run, one JSON object a line, one line a question. The layout is the published one
of the study ``sinks-bruh``; its files are read as they are. Ours have one field more, ``labels``,
since the published ``hallucinated`` says two things: of TruthfulQA that the model chose wrongly,
of HaluEval and FreshQA what the data set says of the input.

``NaN`` marks a measure that failed, as published; such a record is counted and left out of every
analysis. ``null`` in the matrices marks a layer whose sliding window cannot see the sink.

Source:
    PavelPaha/sinks-bruh, commit 1b68372, ``scripts/measure_sink_text.py``.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.core.files import parse_json, read_json_object, reading, reason_of, replace_file, shown
from graphhalu.labels.labels import Meaning
from graphhalu.studies.sinks.records import SinkRecord, SinkRun

SUFFIX: Final = ".jsonl.gz"
META_SUFFIX: Final = ".meta.json"
_REQUIRED: Final = (
    *("idx", "task", "model", "correct", "hallucinated", "entropy", "sink_mass"),
    *("sink_by_layer", "sink_by_layer_head", "seq_len", "sink_tokens", "query_mode"),
)
_SAME: Final = ("task", "model", "sink_tokens", "query_mode", "chat_mode", "quantization")
_TOLERANCE: Final = 1e-3
_SHOWN: Final = 60
_MAX_LINE_BYTES: Final = 2**26
"""Most bytes of a record: a small file could unpack to a line without end."""


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Files of records, and those inside of folders, each once and in order.

    Raises:
        UsageError: If a path does not exist, or there is no file of records.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(path.rglob(f"*{SUFFIX}"))
        elif path.is_file():
            found.append(path)
        else:
            message = f"no file or folder of sink records at {path}"
            raise UsageError(message)
    if not found:
        listed = ", ".join(map(str, paths))
        message = f"no *{SUFFIX} in {listed}\n  Make some:  graphhalu sinks measure"
        raise UsageError(message)
    return list(dict.fromkeys(found))


def read_run(path: Path) -> SinkRun:
    """The records of a file, published or ours, with its ``.meta.json`` if there is one.

    Raises:
        DataFileError: If a line cannot be used, or the records do not belong together; one line
            that names the file, the record and the way out.
    """
    records = tuple(_record(values, where) for values, where in _lines(path))
    if not records:
        message = f"{path} holds no record\n  Measure again:  graphhalu sinks measure"
        raise DataFileError(message)
    _check_together(records, path)
    meta = _read_meta(path)
    for name in ("model", "task", "sink_tokens", "query_mode"):
        if name in meta and meta[name] != getattr(records[0], name):
            message = (
                f"{_meta_path(path)} belongs to another run: it has {name} {shown(meta[name])}, "
                f"the records have {shown(getattr(records[0], name))}"
            )
            raise DataFileError(message)
    return SinkRun(records, meta, path.name.removesuffix(SUFFIX))


def write_run(folder: Path, run: SinkRun) -> Path:
    """Write records and description, each whole or not at all; the description last.

    Raises:
        UsageError: If there is no record.
    """
    if not run.records:
        message = "there is no record to write: no question could be measured"
        raise UsageError(message)
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(plain_record(r), ensure_ascii=False) + "\n" for r in run.records)
    path = folder / f"{run.name}{SUFFIX}"
    # without a time in the header equal records make equal files
    replace_file(path, gzip.compress(text.encode(), compresslevel=6, mtime=0))
    meta = json.dumps(dict(run.meta), indent=2, ensure_ascii=False)
    replace_file(_meta_path(path), meta.encode())
    return path


def plain_record(record: SinkRecord) -> dict[str, Any]:
    """One record in the published layout, with ``labels`` beside it."""
    wrong, misleads = (record.labels.get(name) for name in ("hallucinated", "input"))
    return {
        **record.model_dump(exclude={"by_head", "is_seen"}),
        "labels": {"hallucinated": wrong, "input": misleads},
        "correct": None if wrong is None else not wrong,
        "hallucinated": None if wrong is None else bool(wrong),
        "label_hallucinated": None if misleads is None else bool(misleads),
        "sink_by_layer": _plain_rows(record.by_head.mean(axis=1), record.is_seen),
        "sink_by_layer_head": _plain_rows(record.by_head, record.is_seen),
    }


def _plain_rows(values: Float[np.ndarray, "layer ..."], is_seen: Bool[np.ndarray, "layer"]) -> Any:
    rounded = np.round(values.astype(np.float64), 7).tolist()
    unseen = [None] * values.shape[1] if values.ndim > 1 else None
    return [row if seen else unseen for row, seen in zip(rounded, is_seen.tolist(), strict=True)]


def _lines(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The JSON objects of a file, each with where it stands."""
    number = 0
    try:
        with gzip.open(path) as file:
            while line := file.readline(_MAX_LINE_BYTES):
                number += 1
                if len(line) == _MAX_LINE_BYTES:
                    message = f"{path}, line {number}: expected at most {len(line):,} bytes"
                    raise DataFileError(message)
                if line.strip():
                    where = f"{path}, line {number}"
                    yield _object(line.decode("utf-8"), where), where
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = reason_of(error)
        message = f"{path} cannot be read after line {number}: {reason}; expected gzip JSON Lines"
        raise DataFileError(message) from None


def _object(line: str, where: str) -> Mapping[str, Any]:
    with reading(f"{where}: no JSON"):
        # published records hold NaN where a measurement failed
        values = parse_json(line, allows_nan=True)
    if not isinstance(values, dict):
        message = f"{where}: expected an object, got {line.strip()[:_SHOWN]}"
        raise DataFileError(message)
    missing = [name for name in _REQUIRED if name not in values]
    if missing:
        message = f"{where}: a sink record has no {', '.join(missing)}"
        raise DataFileError(message)
    return values


def _record(values: Mapping[str, Any], where: str) -> SinkRecord:
    by_head, is_seen = _matrix(values["sink_by_layer_head"], where)
    n_layers = len(values["sink_by_layer"]) if isinstance(values["sink_by_layer"], list) else -1
    if n_layers != len(by_head):
        message = f"{where}: sink_by_layer has {n_layers} layers, sink_by_layer_head {len(by_head)}"
        raise DataFileError(message)
    texts = {name: _text(values.get(name)) for name in ("target", "pred")}
    read = {**texts, "labels": _labels(values, where), "by_head": by_head, "is_seen": is_seen}
    # published files may hold null where a setting plays no part
    given = {name: value for name, value in values.items() if value is not None}
    with reading(f"{where}: a field is of the wrong type"):
        record = SinkRecord.model_validate({**given, **read})
    shares = np.append(record.by_head[record.is_seen].ravel(), record.sink_mass)
    finite = shares[np.isfinite(shares)]
    if finite.size and not (finite.min() >= -_TOLERANCE and finite.max() <= 1 + _TOLERANCE):
        message = (
            f"{where}: sink mass is a share of attention between 0 and 1, got "
            f"{finite.min():g} to {finite.max():g}"
        )
        raise DataFileError(message)
    return record


def _matrix(rows: Any, where: str) -> tuple[Float[np.ndarray, "layer head"], Bool[np.ndarray, "layer"]]:
    message = f"{where}: sink_by_layer_head must be a list of layers with as many heads each"
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise DataFileError(message)
    is_seen = np.array([bool(row) and row[0] is not None for row in rows])
    with reading(message):
        by_head = np.array([[np.nan if value is None else float(value) for value in row] for row in rows])
    if by_head.ndim != 2 or not by_head.size:  # noqa: PLR2004
        raise DataFileError(message)
    return by_head, is_seen


def _labels(values: Mapping[str, Any], where: str) -> dict[Meaning, int | None]:
    """Both labels.

    A published record says the first by ``correct``, since its ``hallucinated`` speaks of the
    input wherever the data set has a label of its own.
    """
    stated = values.get("labels")
    if isinstance(stated, Mapping):
        pair = stated.get("hallucinated"), stated.get("input")
    else:
        right = values["correct"]
        pair = None if right is None else not right, values.get("label_hallucinated")
    if any(value not in (None, 0, 1) for value in pair):
        message = f"{where}: a label must be true, false or null, got {pair}"
        raise DataFileError(message)
    wrong, misleads = (None if value is None else int(value) for value in pair)
    return {"hallucinated": wrong, "input": misleads}


def _text(value: Any) -> str | None:
    """An answer as text; published files have letters, texts or lists of texts."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _check_together(records: Sequence[SinkRecord], path: Path) -> None:
    first, seen = records[0], set[int]()
    for record in records:
        different = [n for n in _SAME if getattr(record, n) != getattr(first, n)]
        if record.by_head.shape != first.by_head.shape:
            different.append("the number of layers or heads")
        if different:
            message = (
                f"{path}: record {record.idx} differs from record {first.idx} in "
                f"{', '.join(different)}; one file holds one run"
            )
            raise DataFileError(message)
        if record.idx in seen:
            message = f"{path}: idx {record.idx} stands twice"
            raise DataFileError(message)
        seen.add(record.idx)


def _meta_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(SUFFIX) + META_SUFFIX)


def _read_meta(path: Path) -> dict[str, Any]:
    meta = _meta_path(path)
    if not meta.is_file():
        return {}
    return read_json_object(meta, allows_nan=True)
