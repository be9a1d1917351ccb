"""Measured sink mass in memory: one record a question, one run a file.

Records with NaN are kept and counted; every analysis leaves them out.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import BaseModel, ConfigDict, PositiveInt

from graphhalu.labels.labels import Meaning

FORMAT: Final = "graphhalu-sinks"
FORMAT_VERSION: Final = 1
QueryMode = Literal["last", "range"]
"""``last``: the last query row; ``range``: all query rows after the sink."""


class SinkRecord(BaseModel):
    """Sink mass of one question, with what the model answered."""

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
    """Letter or text that the model answered."""
    labels: dict[Meaning, int | None]
    """1 or 0 by meaning; ``None`` where nothing can be said."""
    entropy: float
    """Of the next-token distribution after the last query, in nat."""
    sink_mass: float
    """Mean over heads, then over the layers that can see the sink."""
    by_head: Float[np.ndarray, "layer head"]
    """Attention to the first tokens, in [0, 1]; NaN where it failed."""
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
    """What else is known; ``question_id`` and ``group_id`` name the question."""

    @property
    def is_usable(self) -> bool:
        """Whether sink mass, entropy and every head that can see the sink are numbers."""
        return bool(
            np.isfinite(self.sink_mass)
            and np.isfinite(self.entropy)
            and np.isfinite(self.by_head[self.is_seen]).all()
        )

    @property
    def group(self) -> str:
        """The question that it belongs to."""
        named = self.meta.get("group_id") or self.meta.get("question_id")
        return str(named) if named else f"record {self.idx}"


@dataclass(frozen=True)
class SinkRun:
    """The records of one model on one data set with one sink and one query mode.

    Attributes:
        records: All of them, also those with NaN.
        meta: What the run says of itself; empty where there is no such file.
        name: Name of its file without the ending, or what stands for it.
    """

    records: tuple[SinkRecord, ...]
    meta: Mapping[str, Any]
    name: str

    @property
    def first(self) -> SinkRecord:
        """Any record: what they share is the same in all."""
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
        letters = [r.pred for r in self.records if r.pred is not None and len(r.pred) == 1]
        if not letters:
            return None
        letter, count = Counter(letters).most_common(1)[0]
        return letter, count / len(letters)


@dataclass(frozen=True)
class SinkTable:
    """Records as arrays, one entry a record.

    Attributes:
        mass: Scalar sink mass.
        entropy: In nat.
        length: Tokens.
        by_head: Sink mass of every head; NaN where a layer cannot see the sink.
        labels: 0 or 1.
        groups: Question of each record.
        answers: What the model answered; empty where nothing is known.
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
        return cls(
            mass=np.array([r.sink_mass for r in records], dtype=np.float64),
            entropy=np.array([r.entropy for r in records], dtype=np.float64),
            length=np.array([r.seq_len for r in records], dtype=np.float64),
            by_head=np.stack([r.by_head for r in records]).astype(np.float64),
            labels=np.array([r.labels[meaning] for r in records], dtype=np.int64),
            groups=np.array([r.group for r in records]),
            answers=np.array([r.pred or "" for r in records]),
        )


@dataclass(frozen=True)
class MeasuredRun:
    """One file of records.

    Attributes:
        path: The file.
        n_records: Records in it.
        n_usable: Those without NaN.
        is_new: Whether it was measured just now; otherwise it was there already.
        cpu_s: Processor seconds of all files that came from the same passes.
    """

    path: Path
    n_records: int
    n_usable: int
    is_new: bool
    cpu_s: float

    @classmethod
    def of(cls, path: Path, run: SinkRun, *, is_new: bool, cpu_s: float) -> "MeasuredRun":
        """What stands in a file."""
        return cls(path, len(run.records), len(run.usable), is_new, cpu_s)


def run_stem(task: str, model: str) -> str:
    """What the names of all files of a model on a data set begin with."""
    plain = re.sub(r"[^\w.+-]", "-", model.replace("/", "__"))
    return f"{task}__{plain}"


def run_name(task: str, model: str, sink_tokens: int, query_mode: str) -> str:
    """Name of a run's files, without an ending; a slash of a hub id becomes ``__``."""
    return f"{run_stem(task, model)}__K{sink_tokens}__q{query_mode}"
