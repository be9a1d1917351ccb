"""One worker of a run: it holds the model, and turns waves of questions into parts of the store."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from graphhalu.datasets.question import Question
from graphhalu.extract.extraction import Answered, Extraction
from graphhalu.extract.plan import Wave, make_plan
from graphhalu.extract.settings import ExtractConfig
from graphhalu.models.check import check_model
from graphhalu.models.load import load_model
from graphhalu.traces.schema import TraceShape
from graphhalu.traces.storage import MAIN
from graphhalu.traces.store import TraceStore, TraceWriter, open_traces

PART_BYTES: Final = 512 * 2**20
"""Uncompressed bytes at which a part is closed before it has all its traces."""


class Described(NamedTuple):
    """What a worker says of its model.

    Attributes:
        identity: What decides the content of the traces.
        shape: What the axes mean.
        arrays: Arrays that are kept.
        notes: What a user should know before the run.
        load_seconds: Time to load and check the model.
    """

    identity: dict[str, Any]
    shape: TraceShape
    arrays: tuple[str, ...]
    notes: tuple[str, ...]
    load_seconds: float


class Worker:
    """A model that writes to a store.

    Args:
        extraction: The model with its settings.
        out: The store; it need not be there before the first wave.
        holder: Name under which the process that holds the store does.
        on_answered: Called with the number of questions of a wave that just got their answers.
    """

    def __init__(
        self,
        extraction: Extraction,
        out: Path | str,
        holder: str = MAIN,
        on_answered: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.extraction = extraction
        self.out = out
        self.holder = holder
        self.on_answered = on_answered
        self.load_seconds = 0.0

    @cached_property
    def writer(self) -> TraceWriter:
        """Writes to the store, beside the other workers of the process that holds it."""
        name = f"{self.holder}.{socket.gethostname()}-{os.getpid()}"
        return open_traces(self.out).member(name)


def load_worker(
    config: ExtractConfig,
    out: Path | str,
    holder: str,
    on_answered: Callable[[int], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
) -> Worker:
    """A worker with its model loaded and checked.

    Args:
        config: What to do.
        out: As for :class:`Worker`, like the others.
        holder: Likewise.
        on_answered: Likewise.
        on_note: Told in one line before anything slow.

    Raises:
        GraphhaluError: If the model cannot be had, or fails its check.
    """
    started = time.monotonic()
    loaded = load_model(config.model, on_note)
    check_model(loaded)
    load_seconds = time.monotonic() - started
    worker = Worker(Extraction(config, loaded), out, holder, on_answered)
    worker.load_seconds = load_seconds
    return worker


def describe(worker: Worker, about: tuple[Mapping[str, Any], int]) -> Described:
    """What the store of these traces is, and what a user should know.

    Args:
        worker: The worker.
        about: What identifies the data set, and how many questions there are.
    """
    dataset, n_questions = about
    extraction = worker.extraction
    return Described(
        extraction.identity(dataset), extraction.shape, extraction.arrays,
        extraction.notes(n_questions), worker.load_seconds,
    )  # fmt: skip


def expected_bytes(worker: Worker, questions: Sequence[Question]) -> int:
    """Most bytes on disk of the traces of these questions.

    Raises:
        UsageError: If the settings do not fit the data set or the model.
    """
    extraction = worker.extraction
    return extraction.estimate_bytes([extraction.ask(question) for question in questions])


def extract_wave(worker: Worker, wave: Wave) -> int:
    """Answer a wave, and commit what of it is not in the store; gives how many questions.

    Answers are small and traces large: so many questions are answered together, which is fast,
    and few are replayed together, which is small.
    """
    writer, extraction = worker.writer, worker.extraction
    writer.store.refresh()
    done = writer.store.done_question_ids()
    asked = [extraction.ask(question) for question in wave.questions]
    place = {name: wave.first + offset for offset, name in enumerate(wave.question_ids)}
    n_new = 0
    for block in part_blocks(extraction, extraction.answer(asked, worker.on_answered)):
        left = [each for each in block if each.asked.question.question_id not in done]
        if not left:
            continue
        traces, failures = extraction.traces(left)
        names = [each.asked.question.question_id for each in left]
        writer.write_part(place[names[0]], traces, names, failures)
        n_new += len(names)
    return n_new


def extract_here(extraction: Extraction, store: TraceStore, questions: Sequence[Question]) -> None:
    """Answer questions with a model that is loaded, and commit them to an empty store."""
    with store.writer() as holder:
        worker = Worker(extraction, store.name, holder.name)
        for wave in make_plan(questions, extraction.config).waves:
            extract_wave(worker, wave)


def part_blocks(extraction: Extraction, answered: Sequence[Answered]) -> Iterator[list[Answered]]:
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
