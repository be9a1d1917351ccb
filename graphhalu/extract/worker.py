"""A model that writes to a store: batches of questions to parts, and what a run asks before it."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from graphhalu.core.provenance import provenance
from graphhalu.datasets.question import Question
from graphhalu.extract.extraction import Extraction, grouped
from graphhalu.extract.prompts import Prompt
from graphhalu.extract.settings import ExtractConfig
from graphhalu.models.check import load_checked
from graphhalu.traces.storage import MAIN
from graphhalu.traces.store import open_traces
from graphhalu.traces.write import PartQueue, TraceWriter

QuestionBatch = tuple[int, tuple[Question, ...]]
"""Questions that are answered together, done or not; first, the place of the first of them among
all questions of the run."""

PART_BYTES: Final = 512 * 2**20
"""Uncompressed bytes at which a part is closed before it has all its traces."""


@dataclass
class Worker:
    """A model that writes to a store.

    Attributes:
        extraction: The model with its settings.
        out: The store; it need not be there before the first batch.
        holder: Name under which the process that holds the store does.
        on_answered: Called for each question of a batch that just got its answers.
        parts: Parts on their way to the store.
        load_seconds: Time to load and check the model.
    """

    extraction: Extraction
    out: Path | str
    holder: str = MAIN
    on_answered: Callable[[], None] = lambda: None
    parts: PartQueue = field(default_factory=PartQueue)
    load_seconds: float = 0.0

    @cached_property
    def writer(self) -> TraceWriter:
        """Writes to the store, beside the other workers of the process that holds it."""
        name = f"{self.holder}.{socket.gethostname()}-{os.getpid()}"
        return open_traces(self.out).member(name)


def load_worker(config: ExtractConfig, out: Path | str, holder: str, **settings: Any) -> Worker:
    """A worker with its model loaded and checked; arguments as of :class:`Worker`.

    Raises:
        GraphhaluError: If the model cannot be had, or fails its check.
    """
    started = time.monotonic()
    loaded = load_checked(config.model)
    load_seconds = time.monotonic() - started
    return Worker(Extraction(config, loaded), out, holder, load_seconds=load_seconds, **settings)


def describe(worker: Worker, about: tuple[Mapping[str, Any], int]) -> dict[str, Any]:
    """What the store of a worker's traces is, and what a user should know.

    Args:
        worker: The worker.
        about: What identifies the data set, and how many questions there are.

    Returns:
        The ``store``, as arguments of :func:`graphhalu.traces.store.open_or_create`, ``notes``
        for the user, and the ``load_seconds`` of the model.
    """
    dataset, n_questions = about
    found = worker.extraction
    return {
        "store": {
            "configuration": found.identity(dataset),
            "shape": found.shape,
            "arrays": found.arrays,
            "provenance": {**provenance(), "config": found.config.model_dump(mode="json")},
        },
        "notes": found.notes(n_questions),
        "load_seconds": worker.load_seconds,
    }


def expected_bytes(worker: Worker, questions: Sequence[Question]) -> int:
    """Most bytes on disk of the traces of these questions.

    Raises:
        UsageError: If the settings do not fit the data set or the model.
    """
    return worker.extraction.estimate_bytes([worker.extraction.prompt(question) for question in questions])


def extract_batch(worker: Worker, batch: QuestionBatch) -> int:
    """Answer a batch, and queue what of it is not in the store; gives how many questions.

    Answers are small and traces large: so many questions are answered together, which is fast,
    and few are replayed together, which is small.
    """
    writer, extraction, (first, questions) = worker.writer, worker.extraction, batch
    done = writer.store.done_question_ids()
    names = [question.question_id for question in questions]
    n_new = 0
    for group in extraction.groups([extraction.prompt(question) for question in questions]):
        found: dict[str, Prompt] = {}
        for answered in extraction.generate(group):
            found[answered.question.question_id] = answered
            worker.on_answered()
        for block in part_blocks(extraction, [found[each.question.question_id] for each in group]):
            left = [each for each in block if each.question.question_id not in done]
            if not left:
                continue
            traces, failures = extraction.traces(left)
            committed = [each.question.question_id for each in left]
            worker.parts.put(writer, first + names.index(committed[0]), traces, committed, failures)
            n_new += len(committed)
    return n_new


def extract_committed(worker: Worker, batch: QuestionBatch) -> int:
    """As :func:`extract_batch`, and commit it: for workers that may be lost between batches."""
    worker.writer.store.refresh()
    with worker.parts:
        return extract_batch(worker, batch)


def part_blocks(extraction: Extraction, answered: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    """Questions of one part each: as many as make ``part_size`` traces or ``PART_BYTES``."""
    sizes = {each.question.question_id: extraction.size(each) for each in answered}

    def fits(block: list[Prompt]) -> bool:
        n_traces = sum(max(1, len(each.answers)) for each in block)
        n_bytes = sum(sizes[each.question.question_id] for each in block)
        return n_traces <= extraction.config.part_size and n_bytes <= PART_BYTES

    return grouped(answered, fits)
