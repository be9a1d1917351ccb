"""The extraction run: questions to traces in a store, part by part, and resumable.

A part is a fixed block of questions. Whatever a killed run had not committed is done again by
the next one; what it had committed is not.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graphhalu.datasets.question import Question
from graphhalu.datasets.registry import load_questions
from graphhalu.extract.asking import Asked
from graphhalu.extract.extraction import Answered, Extraction
from graphhalu.extract.settings import ExtractConfig
from graphhalu.models.cards import resolve_model
from graphhalu.models.check import check_model
from graphhalu.models.load import load_model
from graphhalu.provenance import provenance
from graphhalu.traces.store import TraceStore, check_fits, check_place, open_or_create

PART_BYTES = 512 * 2**20
"""Uncompressed bytes at which a part is closed before it has all its traces."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: questions done in this run, to do in this run, and seconds spent."""

    n_done: int
    n_total: int
    seconds: float


@dataclass(frozen=True)
class ExtractSummary:
    """What a run did, and what its store holds now.

    Attributes:
        store_path: The store.
        n_asked: Questions that were asked for.
        n_new: Questions that this run answered.
        n_traces: Traces in the store.
        failures: Reason to number of questions of the store that have no trace.
        seconds: Time of this run without loading the model.
        load_seconds: Time to load and check the model.
        bytes_by_array: Bytes on disk of each array.
        shapes: Shape of attention and hidden states of a typical trace.
        notes: What a user should know (a fallback, fewer questions than asked for).
    """

    store_path: Path
    n_asked: int
    n_new: int
    n_traces: int
    failures: dict[str, int]
    seconds: float
    load_seconds: float
    bytes_by_array: dict[str, int]
    shapes: dict[str, str]
    notes: tuple[str, ...] = field(default=())

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return sum(self.bytes_by_array.values())


def extract(
    config: ExtractConfig,
    out: Path,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> ExtractSummary:
    """Answer the questions, capture attention and hidden states, and commit them to a store.

    Args:
        config: What to do.
        out: The store; an existing one is resumed or extended if it has the same configuration.
        on_progress: Called after every batch.
        on_note: Called with one line that a user should see before the run.

    Raises:
        StoreMismatchError: If the store holds another configuration; names the fields.
        GraphhaluError: If the data set, the model or the disk cannot be used.
    """
    tell = on_note or (lambda _: None)
    resolve_model(config.model.name)  # a mistyped name is told before a data set is read
    check_place(out)  # and what is no store, before a model is loaded
    questions = load_questions(
        config.dataset.name, config.dataset.path,
        num_samples=config.num_samples, seed=config.dataset.seed,
        fields=config.dataset.fields or None,
    )  # fmt: skip
    started = time.monotonic()
    loaded = load_model(config.model, tell)
    check_model(loaded)
    load_seconds = time.monotonic() - started
    extraction = Extraction(config, loaded)
    notes = extraction.notes(len(questions))
    for note in notes:
        tell(note)
    store, asked = _prepared(extraction, out, questions, tell)
    started = time.monotonic()
    if asked:
        run_questions(extraction, store, asked, on_progress or (lambda _: None))
    return _summary(
        TraceStore.open(out), n_asked=len(questions), n_new=len(asked), notes=notes,
        seconds=time.monotonic() - started, load_seconds=load_seconds,
    )  # fmt: skip


def _prepared(
    extraction: Extraction,
    out: Path,
    questions: Sequence[Question],
    tell: Callable[[str], None],
) -> tuple[TraceStore, list[Asked]]:
    """The store and the questions that are left; a new store is made when all else is sound."""

    def opened() -> TraceStore:
        return open_or_create(
            out, configuration=extraction.identity(), shape=extraction.shape,
            arrays=extraction.arrays,
        )  # fmt: skip

    done = opened().done_question_ids() if out.exists() else set()
    asked = [extraction.ask(q) for q in questions if q.question_id not in done]
    if done:
        tell(f"{len(done)} questions are in the store already, {len(asked)} are left")
    if asked:
        expected = extraction.estimate_bytes(asked)
        tell(f"expected on disk: at most {expected / 2**20:,.0f} MiB")
        check_fits(out, expected)
    return opened(), asked


def run_questions(
    extraction: Extraction,
    store: TraceStore,
    asked: Sequence[Asked],
    on_progress: Callable[[Progress], None],
) -> None:
    """Answer the questions wave by wave, and commit the traces of each wave part by part.

    Answers are small and traces large: so many questions are answered together, which is fast,
    and few are replayed together, which is small.
    """
    started, n_done = time.monotonic(), 0

    def advance(n_questions: int) -> None:
        nonlocal n_done
        n_done += n_questions
        on_progress(Progress(n_done, len(asked), time.monotonic() - started))

    config = extraction.config
    wave_size = max(config.batch_size, config.part_size)
    with store.writer() as writer:
        for wave in _batched(asked, wave_size):
            answered = extraction.answer(wave, advance)
            for block in _blocks(extraction, answered):
                traces, failures = extraction.traces(block)
                names = [each.asked.question.question_id for each in block]
                writer.write_part(writer.next_part_index(), traces, names, failures)


def _batched(asked: Sequence[Asked], size: int) -> Iterator[Sequence[Asked]]:
    """The questions in their order, ``size`` at a time."""
    for start in range(0, len(asked), size):
        yield asked[start : start + size]


def _blocks(extraction: Extraction, answered: Sequence[Answered]) -> Iterator[list[Answered]]:
    """Questions of one part each: as many as make ``part_size`` traces or ``PART_BYTES``."""
    block: list[Answered] = []
    n_traces = n_bytes = 0
    for each in answered:
        own, size = max(1, len(each.answers)), extraction.size(each)
        is_full = n_traces + own > extraction.config.part_size or n_bytes + size > PART_BYTES
        if block and is_full:
            yield block
            block, n_traces, n_bytes = [], 0, 0
        block.append(each)
        n_traces, n_bytes = n_traces + own, n_bytes + size
    if block:
        yield block


def _summary(
    store: TraceStore,
    *,
    n_asked: int,
    n_new: int,
    notes: tuple[str, ...],
    seconds: float,
    load_seconds: float,
) -> ExtractSummary:
    shapes: dict[str, str] = {}
    if len(store):
        lengths = [record.length for record in store.records]
        trace = store[int(np.argsort(lengths)[len(lengths) // 2])]
        shape = store.shape
        for name, sizes in (
            ("attention", (len(shape.attention_layers), shape.n_heads, trace.length, trace.length)),
            ("hidden", (len(shape.hidden_layers), trace.length, shape.hidden_size)),
        ):
            if name in store.arrays or f"{name}_fixed" in store.arrays:
                shapes[name] = " x ".join(map(str, sizes))
    return ExtractSummary(
        store_path=store.path,
        n_asked=n_asked,
        n_new=n_new,
        n_traces=len(store),
        failures=dict(Counter(item["reason"] for item in store.failures)),
        seconds=seconds,
        load_seconds=load_seconds,
        bytes_by_array=store.n_bytes(),
        shapes=shapes,
        notes=notes,
    )


def run_provenance(config: ExtractConfig) -> dict[str, Any]:
    """What a store was made with beside its configuration."""
    return {**provenance(), "batch_size": config.batch_size, "threads": config.model.threads}
