"""Measured sink mass: one record a question, one run a file ``<task>__<model>__K<K>__q<mode>.jsonl.gz``.

A gzip file has one JSON object a line, and ``.meta.json`` beside it. The layout is the published one
of the study ``sinks-bruh``, whose files can be read. Ours have one more field, ``labels``, since the
published ``hallucinated`` has two meanings: for TruthfulQA the model chose wrongly, for HaluEval and
FreshQA the data set says it of the input.

``NaN`` marks a failed measurement, as published; such records are counted and left out of every
analysis. ``null`` in the matrices marks a layer whose sliding window cannot see the sink.

Source:
    PavelPaha/sinks-bruh, commit 1b68372, ``scripts/measure_sink_text.py``.
"""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import BaseModel, BeforeValidator, ConfigDict, PositiveInt, model_validator

from graphhalu.core.documents import FileFormat, validated, write_document
from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.core.files import parse_json, read_json_object, reading, reason_of, replace_file, shown
from graphhalu.core.provenance import provenance
from graphhalu.labels.labels import Meaning

KIND: Final = FileFormat("graphhalu-sinks", 1, "Measure again:  graphhalu sinks measure")
SUFFIX: Final = ".jsonl.gz"
META_SUFFIX: Final = ".meta.json"
QueryMode = Literal["last", "range"]
"""``last``: the last query row; ``range``: all query rows after the sink."""
Label = Annotated[Literal[0, 1] | None, BeforeValidator(lambda value: None if value is None else int(value))]
SinkCell = tuple[int, QueryMode]
"""Leading tokens that form the sink, and the query rows that count."""
SETTINGS: Final = ("task", "model", "sink_tokens", "query_mode", "chat_mode", "quantization")
_TOLERANCE: Final = 1e-3
_UNSEEN: Final = np.array(None, dtype=object)
_MAX_LINE_BYTES: Final = 2**26
"""Most bytes of a record: a small gzip file can hold a line of any length."""


class SinkRecord(BaseModel):
    """Sink mass of one question, with the model's answer."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, protected_namespaces=())

    idx: int
    """Number of the record within its run."""
    task: str
    """Name of the data set."""
    model: str
    """Name of the model."""
    target: str | None
    """Letters of the right options, or the first gold answer."""
    pred: str | None
    """The model's answer, a letter or a text."""
    labels: dict[Meaning, Label]
    """1 or 0 by meaning; ``None`` if unknown."""
    entropy: float
    """Of the next-token distribution after the last query, in nat."""
    sink_mass: float
    """Mean over heads, then over the layers that can see the sink."""
    by_head: Float[np.ndarray, "layer head"]
    """Attention to the first tokens, in [0, 1]; NaN if the measurement failed."""
    is_seen: Bool[np.ndarray, "layer"]
    """Layers that can see the sink from at least one counted query."""
    seq_len: PositiveInt
    """Tokens of the measured sequence."""
    sink_tokens: PositiveInt
    """Leading tokens that form the sink."""
    query_mode: QueryMode
    """Which query rows count."""
    query_start: int = 0
    """First query row that may count in the mode ``range``."""
    chat_mode: str = "off"
    """``on``, ``off`` or, as published, ``auto``."""
    quantization: str = "none"
    """Of the model."""
    meta: dict[str, Any] = {}
    """More about the question; ``question_id`` and ``group_id`` name it."""

    @classmethod
    def of(cls, run: Mapping[str, Any], **fields: Any) -> "SinkRecord":
        """A record with the settings that the description of its run gives."""
        settings = {name: run[name] for name in ("task", "model", "query_start", "quantization")}
        return cls(**settings, chat_mode=run["chat"], **fields)

    @model_validator(mode="before")
    @classmethod
    def _of_a_file(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The fields of a line of a file, published or ours.

        The first label of a published record is in ``correct``, since its ``hallucinated`` speaks
        of the input if the data set has a label of its own.
        """
        if "sink_by_layer_head" not in values:
            return values
        rows, by_layer = values["sink_by_layer_head"], values["sink_by_layer"]
        if not isinstance(rows, list) or len({len(row) or -1 for row in rows} - {-1}) != 1:
            raise ValueError("sink_by_layer_head must be a list of layers with as many heads each")
        if len(by_layer) != len(rows):
            raise ValueError(f"sink_by_layer has {len(by_layer)} layers, sink_by_layer_head {len(rows)}")
        labels, right = values.get("labels"), values.get("correct")
        if not isinstance(labels, Mapping):
            wrong = None if values["correct"] is None else not right
            labels = {"hallucinated": wrong, "input": values.get("label_hallucinated")}
        if any(label not in (None, 0, 1) for label in labels.values()):
            raise ValueError(f"a label must be true, false or null, got {shown(labels)}")
        by_head = np.array(rows, dtype=np.float64)
        shares = np.append(by_head, float(values["sink_mass"]))
        shares = shares[np.isfinite(shares)]
        low, high = shares.min(initial=0.0), shares.max(initial=0.0)
        if low < -_TOLERANCE or high > 1 + _TOLERANCE:
            raise ValueError(f"sink mass is a share of attention between 0 and 1, got {low:g} to {high:g}")
        # published files may hold null where a setting plays no part
        found = {name: value for name, value in values.items() if value is not None}
        for name in ("target", "pred"):  # published answers are letters, texts or lists of texts
            answer = values.get(name)
            found[name] = answer if answer is None or isinstance(answer, str) else json.dumps(answer)
        found["labels"] = labels
        return found | {"by_head": by_head, "is_seen": np.array([row[0] is not None for row in rows])}

    @property
    def is_usable(self) -> bool:
        """Whether sink mass, entropy and every head that can see the sink are finite."""
        numbers = [self.sink_mass, self.entropy, *self.by_head[self.is_seen].ravel()]
        return bool(np.isfinite(numbers).all())

    @property
    def group(self) -> str:
        """The question that it belongs to."""
        named = self.meta.get("group_id") or self.meta.get("question_id")
        return str(named) if named else f"record {self.idx}"


@dataclass(frozen=True)
class SinkRun:
    """The records of one model on one data set with one sink and one query mode.

    Attributes:
        records: All of them, including those with NaN.
        meta: Description of the run; empty if it has no such file.
        name: Name of its file without the ending.
        path: The file; ``None`` if it was not written.
        is_new: Whether it was measured by this call and not by an earlier one.
    """

    records: tuple[SinkRecord, ...]
    meta: Mapping[str, Any]
    name: str
    path: Path | None = None
    is_new: bool = False

    @property
    def first(self) -> SinkRecord:
        """A record to read the settings from, which all records share."""
        return self.records[0]

    @cached_property
    def usable(self) -> tuple[SinkRecord, ...]:
        """Records without NaN."""
        return tuple(record for record in self.records if record.is_usable)

    def labelled(self, meaning: Meaning) -> tuple[SinkRecord, ...]:
        """Usable records that have a label of this meaning."""
        return tuple(r for r in self.usable if r.labels.get(meaning) is not None)

    def accuracy(self) -> float | None:
        """Share of right answers among all records with an answer, NaN or not."""
        known = [1 - v for r in self.records if (v := r.labels.get("hallucinated")) is not None]
        return float(np.mean(known)) if known else None

    def commonest_answer(self) -> tuple[str, float] | None:
        """The letter that the model chose most often, and how often; ``None`` without letters."""
        letters = Counter(r.pred for r in self.records if r.pred is not None and len(r.pred) == 1)
        return next(((letter, n / letters.total()) for letter, n in letters.most_common(1)), None)


class SinkTable(NamedTuple):
    """Records as arrays, one entry a record.

    Attributes:
        mass: Scalar sink mass.
        entropy: In nat.
        length: Tokens.
        by_head: Sink mass of every head; NaN where a layer cannot see the sink.
        labels: 0 or 1.
        groups: Question of each record.
        answers: The model's answer; empty if unknown.
    """

    mass: Float[np.ndarray, "trace"]
    entropy: Float[np.ndarray, "trace"]
    length: Float[np.ndarray, "trace"]
    by_head: Float[np.ndarray, "trace layer head"]
    labels: Int[np.ndarray, "trace"]
    groups: Shaped[np.ndarray, "trace"]
    answers: Shaped[np.ndarray, "trace"]

    @classmethod
    def of(cls, records: Sequence[SinkRecord], meaning: Meaning) -> "SinkTable":
        """The arrays of usable records with a label of this meaning."""
        names = ("sink_mass", "entropy", "seq_len", "by_head")
        numbers = (np.array([getattr(r, name) for r in records], dtype=np.float64) for name in names)
        mass, entropy, length, by_head = numbers
        labels = np.array([r.labels[meaning] for r in records], dtype=np.int64)
        groups, answers = np.array([r.group for r in records]), np.array([r.pred or "" for r in records])
        return cls(mass, entropy, length, by_head, labels, groups, answers)


def run_stem(task: str, model: str) -> str:
    """First part of the names of all files of a model on a data set."""
    plain = re.sub(r"[^\w.+-]", "-", model.replace("/", "__"))
    return f"{task}__{plain}"


def run_name(task: str, model: str, sink_tokens: int, query_mode: str) -> str:
    """Name of a run's files, without an ending; a slash of a hub id becomes ``__``."""
    return f"{run_stem(task, model)}__K{sink_tokens}__q{query_mode}"


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Files of records, and those inside of folders, each once and in order.

    Raises:
        UsageError: If a path does not exist, or there is no file of records.
    """
    found = dict[Path, None]()
    for path in paths:
        if not path.exists():
            raise UsageError(f"no file or folder of sink records at {path}")
        found |= dict.fromkeys(sorted(path.rglob(f"*{SUFFIX}")) if path.is_dir() else [path])
    if not found:
        listed = ", ".join(map(str, paths))
        raise UsageError(f"no *{SUFFIX} in {listed}\n  Make some:  graphhalu sinks measure")
    return list(found)


def read_run(path: Path) -> SinkRun:
    """The records of a file, published or ours, with its ``.meta.json`` if there is one.

    Raises:
        DataFileError: If a line cannot be used, or the records do not belong together; one line
            that names the file, the record and the way out.
    """
    records = _read_records(path)
    if not records:
        raise DataFileError(f"{path} holds no record\n  {KIND.way_out}")
    first, counts = records[0], Counter(record.idx for record in records)
    for record in records:
        different = [name for name in SETTINGS if getattr(record, name) != getattr(first, name)]
        different += ["the number of layers or heads"] * (record.by_head.shape != first.by_head.shape)
        if different:
            differs = f"record {record.idx} differs from record {first.idx} in {', '.join(different)}"
            raise DataFileError(f"{path}: {differs}; one file holds one run")
        if counts[record.idx] > 1:
            raise DataFileError(f"{path}: idx {record.idx} stands twice")
    name = path.name.removesuffix(SUFFIX)
    meta_path = path.with_name(name + META_SUFFIX)
    meta = read_json_object(meta_path, allows_nan=True) if meta_path.is_file() else {}
    for field in ("model", "task", "sink_tokens", "query_mode"):
        stated, known = meta.get(field), getattr(first, field)
        if field in meta and stated != known:
            fault = f"it has {field} {shown(stated)}, the records have {shown(known)}"
            raise DataFileError(f"{meta_path} belongs to another run: {fault}")
    return SinkRun(records, meta, name, path)


def write_run(folder: Path, run: SinkRun) -> Path:
    """Write records and description, each whole or not at all; the description last.

    Raises:
        UsageError: If there is no record.
    """
    if not run.records:
        raise UsageError("there is no record to write: no question could be measured")
    lines = "".join(json.dumps(plain_record(r), ensure_ascii=False) + "\n" for r in run.records)
    path = folder / f"{run.name}{SUFFIX}"
    # without a time in the header equal records make equal files
    replace_file(path, gzip.compress(lines.encode(), compresslevel=6, mtime=0))
    write_document(folder / f"{run.name}{META_SUFFIX}", {**run.meta, "provenance": provenance()}, KIND)
    return path


def plain_record(record: SinkRecord) -> dict[str, Any]:
    """One record in the published layout, with ``labels`` beside it."""
    wrong, misleads = (record.labels.get(name) for name in ("hallucinated", "input"))
    by_layer, by_head = (
        np.where(record.is_seen, np.round(values.astype(np.float64), 7).T, _UNSEEN).T.tolist()
        for values in (record.by_head.mean(axis=1), record.by_head)
    )
    return {
        **record.model_dump(exclude={"by_head", "is_seen"}),
        "labels": {"hallucinated": wrong, "input": misleads},
        "correct": None if wrong is None else not wrong,
        "hallucinated": None if wrong is None else bool(wrong),
        "label_hallucinated": None if misleads is None else bool(misleads),
        "sink_by_layer": by_layer,
        "sink_by_layer_head": by_head,
    }


def _read_records(path: Path) -> tuple[SinkRecord, ...]:
    found, number = list[SinkRecord](), 0
    try:
        with gzip.open(path) as file:
            while line := file.readline(_MAX_LINE_BYTES):
                number += 1
                where = path.with_name(f"{path.name}, line {number}")
                with reading(f"{where} is not a sink record"):
                    if len(line) == _MAX_LINE_BYTES:
                        raise ValueError(f"expected at most {len(line):,} bytes")
                    if line.strip():
                        # published records hold NaN where a measurement failed
                        values = dict(parse_json(line, allows_nan=True))
                        found.append(validated(SinkRecord, values, where))
    except (OSError, EOFError, zlib.error) as error:
        fault = f"{path} cannot be read after line {number}: {reason_of(error)}"
        raise DataFileError(f"{fault}; expected gzip JSON Lines") from None
    return tuple(found)
