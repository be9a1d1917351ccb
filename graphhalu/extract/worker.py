"""Batches of questions, and the worker that turns them into parts of the store.

A batch is what one worker does without a stop: its questions are answered together and committed
part by part. Batches are cut by their place in the list of questions and by nothing else, so that
one process, many of them, and one that was killed and goes on all make the same parts.
"""

import os
import re
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from graphhalu.core.errors import UsageError
from graphhalu.datasets.question import Question
from graphhalu.extract.extraction import Extraction, Generation, grouped
from graphhalu.extract.settings import ExtractConfig
from graphhalu.models.check import check_model
from graphhalu.models.load import load_model
from graphhalu.traces.schema import TraceShape
from graphhalu.traces.storage import MAIN
from graphhalu.traces.store import TraceWriter, open_traces

PART_BYTES: Final = 512 * 2**20
"""Uncompressed bytes at which a part is closed before it has all its traces."""


@dataclass(frozen=True)
class Shard:
    """One of several equal shares of a run.

    Attributes:
        number: Which one, from 1.
        count: How many there are.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """A share written as ``3/10``.

        Raises:
            UsageError: If it is none.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"a shard is written as i/N with i from 1 to N, as 3/10; got {text!r}")
        return cls(int(match[1]), int(match[2]))

    @property
    def writer(self) -> str:
        """Name under which its process writes to the store."""
        return f"shard-{self.number}-of-{self.count}"


@dataclass(frozen=True)
class QuestionBatch:
    """Questions that are answered together.

    Attributes:
        first: Place of its first question among all questions of the run.
        questions: Its questions, done or not.
    """

    first: int
    questions: tuple[Question, ...]

    @property
    def question_ids(self) -> tuple[str, ...]:
        """Its questions by name."""
        return tuple(question.question_id for question in self.questions)


def question_batches(
    questions: Sequence[Question], config: ExtractConfig, shard: Shard | None = None
) -> list[QuestionBatch]:
    """Cut the questions of a run into batches.

    Args:
        questions: All of them, in the order of the run.
        config: Questions answered at a time, and traces of a part; a batch fills both.
        shard: Which batches are taken: every N-th, from the i-th on. By default all.
    """
    size = max(config.batch_size, config.part_size)
    batches = [
        QuestionBatch(first, tuple(questions[first : first + size]))
        for first in range(0, len(questions), size)
    ]
    return batches if shard is None else batches[shard.number - 1 :: shard.count]


def batches_left(batches: Sequence[QuestionBatch], done: Collection[str]) -> list[QuestionBatch]:
    """Batches with a question that is not done; they stay whole.

    The answers of a batch are searched for together, and with other questions beside it an
    answer's numbers round differently. So questions that are done are answered again with the
    rest of their batch; what is committed of them is not made again.
    """
    return [batch for batch in batches if not set(done).issuperset(batch.question_ids)]


class Described(NamedTuple):
    """What a worker says of its model.

    Attributes:
        config: What is done, with what was left to the model and the data set written out.
        identity: What decides the content of the traces.
        shape: What the axes mean.
        arrays: Arrays that are kept.
        notes: What a user should know before the run.
        load_seconds: Time to load and check the model.
    """

    config: ExtractConfig
    identity: dict[str, Any]
    shape: TraceShape
    arrays: tuple[str, ...]
    notes: tuple[str, ...]
    load_seconds: float


@dataclass
class Worker:
    """A model that writes to a store.

    Attributes:
        extraction: The model with its settings.
        out: The store; it need not be there before the first batch.
        holder: Name under which the process that holds the store does.
        on_answered: Called for each question of a batch that just got its answers.
        load_seconds: Time to load and check the model.
    """

    extraction: Extraction
    out: Path | str
    holder: str = MAIN
    on_answered: Callable[[], None] = lambda: None
    load_seconds: float = 0.0

    @cached_property
    def writer(self) -> TraceWriter:
        """Writes to the store, beside the other workers of the process that holds it."""
        name = f"{self.holder}.{socket.gethostname()}-{os.getpid()}"
        return open_traces(self.out).member(name)


def load_worker(
    config: ExtractConfig, out: Path | str, holder: str, on_answered: Callable[[], None] = lambda: None
) -> Worker:
    """A worker with its model loaded and checked; arguments as of :class:`Worker`.

    Raises:
        GraphhaluError: If the model cannot be had, or fails its check.
    """
    started = time.monotonic()
    loaded = load_model(config.model)
    check_model(loaded)
    load_seconds = time.monotonic() - started
    return Worker(Extraction(config, loaded), out, holder, on_answered, load_seconds)


def describe(worker: Worker, about: tuple[Mapping[str, Any], int]) -> Described:
    """What the store of these traces is, and what a user should know.

    Args:
        worker: The worker.
        about: What identifies the data set, and how many questions there are.
    """
    dataset, n_questions = about
    found, seconds = worker.extraction, worker.load_seconds
    identity, notes = found.identity(dataset), found.notes(n_questions)
    return Described(found.config, identity, found.shape, found.arrays, notes, seconds)


def expected_bytes(worker: Worker, questions: Sequence[Question]) -> int:
    """Most bytes on disk of the traces of these questions.

    Raises:
        UsageError: If the settings do not fit the data set or the model.
    """
    extraction = worker.extraction
    return extraction.estimate_bytes([extraction.builder.build(question) for question in questions])


def extract_batch(worker: Worker, batch: QuestionBatch) -> int:
    """Answer a batch, and commit what of it is not in the store; gives how many questions.

    Answers are small and traces large: so many questions are answered together, which is fast,
    and few are replayed together, which is small.
    """
    writer, extraction = worker.writer, worker.extraction
    writer.store.refresh()
    done = writer.store.done_question_ids()
    found: dict[str, Generation] = {}
    prompts = [extraction.builder.build(question) for question in batch.questions]
    for generation in extraction.generate(prompts):
        found[generation.question_id] = generation
        worker.on_answered()
    n_new = 0
    for block in part_blocks(extraction, [found[name] for name in batch.question_ids]):
        left = [each for each in block if each.question_id not in done]
        if not left:
            continue
        traces, failures = extraction.traces(left)
        names = [each.question_id for each in left]
        first = batch.first + batch.question_ids.index(names[0])
        writer.write_part(first, traces, names, failures)
        n_new += len(names)
    return n_new


def part_blocks(extraction: Extraction, generations: Sequence[Generation]) -> Iterator[list[Generation]]:
    """Questions of one part each: as many as make ``part_size`` traces or ``PART_BYTES``."""
    sizes = {each.question_id: extraction.size(each) for each in generations}

    def fits(block: list[Generation]) -> bool:
        n_traces = sum(max(1, len(each.answers)) for each in block)
        n_bytes = sum(sizes[each.question_id] for each in block)
        return n_traces <= extraction.config.part_size and n_bytes <= PART_BYTES

    return grouped(generations, fits)
