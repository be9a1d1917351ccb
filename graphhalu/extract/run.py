"""The extraction run: questions to traces in a store, batch by batch, and resumable.

Whatever a killed run had not committed is done again by the next one; what it had committed is
not. The batches run on an executor: in this process, or on the workers of a cluster.

A batch is what one worker does without a stop: its questions are answered together and committed
part by part. Batches are cut by their place in the list of questions and by nothing else, so that
one process, many of them, and one that was killed and goes on all make the same parts.
"""

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from graphhalu.core.errors import StoreError, UsageError, WorkerError
from graphhalu.datasets.question import Question
from graphhalu.datasets.registry import load_questions
from graphhalu.engine.executors import Executor, Progress, SerialExecutor, Workers, no_progress
from graphhalu.extract.settings import ExtractConfig
from graphhalu.extract.worker import (
    QuestionBatch,
    Worker,
    describe,
    expected_bytes,
    extract_batch,
    extract_committed,
    load_worker,
)
from graphhalu.models.cards import resolve_model
from graphhalu.traces.disk import check_fits
from graphhalu.traces.storage import MAIN, LocalBackend
from graphhalu.traces.store import TraceStore, open_or_create, storage_backend
from graphhalu.traces.write import PartQueue

_FILE_ENDING = re.compile(r"(?:\.(?:gguf|jsonl?|csv|tsv|parquet|txt))?(?:\.gz)?$", re.IGNORECASE)
_ESTIMATED_TOGETHER = 1024
"""Questions whose size one worker estimates at a time."""

_log = logging.getLogger(__name__)


Shard = tuple[int, int]
"""One of several equal shares of a run: which one, from 1, and how many there are."""


def parse_shard(text: str) -> Shard:
    """A share written as ``3/10``.

    Raises:
        UsageError: If it is none.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"a shard is written as i/N with i from 1 to N, as 3/10; got {text!r}")
    return int(match[1]), int(match[2])


def shard_writer(shard: Shard) -> str:
    """Name under which the process of a share writes to the store."""
    return "shard-{}-of-{}".format(*shard)


@dataclass(frozen=True)
class ExtractSummary:
    """What a run did, and what its store holds now.

    Attributes:
        store_path: The store: a path, or an address in an object store.
        n_asked: Questions that were asked for.
        n_new: Questions that this run answered.
        n_traces: Traces in the store.
        failures: Reason to number of questions of the store that have no trace.
        seconds: Time of this run without loading the model.
        load_seconds: Time to load and check the model.
        bytes_by_array: Bytes on disk of each array.
        shapes: Shape of attention and hidden states of a typical trace.
        notes: What a user should know (a fallback, fewer questions than asked for).
        quarantined: Questions on which workers died again and again, and why; they are not done.
    """

    store_path: str
    n_asked: int
    n_new: int
    n_traces: int
    failures: dict[str, int]
    seconds: float
    load_seconds: float
    bytes_by_array: dict[str, int]
    shapes: dict[str, str]
    notes: tuple[str, ...] = field(default=())
    quarantined: dict[str, str] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return sum(self.bytes_by_array.values())

    @property
    def failure(self) -> WorkerError | None:
        """What to raise because questions are not done, if so."""
        lost = self.quarantined
        message = (
            f"{len(lost)} questions are not done: {'; '.join(sorted(set(lost.values())))}\n  Run the same "
            f"command again to try them, or do them with more memory a worker: {', '.join(lost)}"
        )
        return WorkerError(message) if lost else None

    def values(self) -> dict[str, Any]:
        """Everything as plain values, with sizes and times of one trace."""
        values = vars(self) | {"store": self.store_path, "set_aside": self.quarantined, "bytes": self.n_bytes}
        values["seconds_a_question"] = self.seconds / self.n_new if self.n_new else None
        values["bytes_a_trace"] = self.n_bytes / self.n_traces if self.n_traces else None
        return {name: values[name] for name in values if name not in ("store_path", "quarantined")}


def default_store(config: ExtractConfig) -> Path:
    """Where the traces of a model and a data set go when nothing is said."""
    names = [name.strip("/").rpartition("/")[2] for name in (config.model.name, config.dataset.name)]
    return Path("data/traces") / f"{'_'.join(_FILE_ENDING.sub('', name) for name in names)}.zarr"


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
    batches = [(first, tuple(questions[first : first + size])) for first in range(0, len(questions), size)]
    number, count = shard or (1, 1)
    return batches[number - 1 :: count]


def batches_left(batches: Sequence[QuestionBatch], done: Collection[str]) -> list[QuestionBatch]:
    """Batches with a question that is not done; they stay whole.

    The answers of a batch are searched for together, and with other questions beside it an
    answer's numbers round differently. So questions that are done are answered again with the
    rest of their batch; what is committed of them is not made again.
    """
    return [batch for batch in batches if not {each.question_id for each in batch[1]} <= set(done)]


def extract(
    config: ExtractConfig,
    out: Path | str | None = None,
    *,
    engine: Executor | None = None,
    shard: Shard | None = None,
    on_progress: Progress = no_progress,
) -> ExtractSummary:
    """Answer the questions, capture attention and hidden states, and commit them to a store.

    What a user should see before the run is logged under ``graphhalu`` at the level INFO.

    Args:
        config: What to do.
        out: The store; an existing one is resumed or extended if it has the same configuration. By
            default ``data/traces/<model>_<dataset>.zarr``.
        engine: Where the work runs; by default in this process.
        shard: The share of the questions that is done; by default all.
        on_progress: Called after every question; with remote workers, after every batch.

    Raises:
        StoreMismatchError: If the store holds another configuration; names the fields.
        GraphhaluError: If the data set, the model, the disk or the cluster cannot be used.
    """
    resolve_model(config.model.name)  # a mistyped name is refused before a data set is read
    out = out or default_store(config)
    storage_backend(out).refuse_other_content()  # and what is not a store, before a model is loaded
    dataset = config.dataset
    n_wanted, fields = config.num_samples, dataset.fields or None
    questions = load_questions(
        dataset.name, dataset.path, num_samples=n_wanted, seed=dataset.seed, fields=fields
    )
    if config.capture.contrast and not any(question.context for question in questions):
        raise UsageError(
            f"--contrast compares answers with and without their context, and no question of "
            f"{dataset.name} has one\n  Leave it out, or name the column:  --fields context=COLUMN"
        )
    batches = question_batches(questions, config, shard)
    engine, parts = engine or SerialExecutor(), PartQueue()
    n_seen, n_total, started = 0, 0, time.monotonic()

    def count(n_questions: int = 1) -> None:
        nonlocal n_seen
        # those of a batch that were done already are answered again with it
        n_seen = min(n_seen + n_questions, n_total)
        on_progress(n_seen, n_total)

    holder = MAIN if shard is None else shard_writer(shard)
    here = {"on_answered": count, "parts": parts}
    with engine.workers(_start(engine, config, out, holder, here), max(1, len(batches))) as workers:
        about = (dataset.identity(), len(questions))
        description = next(workers(describe, [about])).result()
        for note in description["notes"]:
            _log.info(note)
        wanted = [question for _, questions in batches for question in questions]
        store = _prepared(workers, description, out, wanted)
        with store.writer(holder) as writer:
            before = writer.store.done_question_ids()
            left = batches_left(batches, before)
            n_total, started = len({each.question_id for each in wanted} - before), time.monotonic()
            n_made, failed = 0, dict[str, str]()
            work = extract_batch if isinstance(engine, SerialExecutor) else extract_committed
            with parts, closing(workers(work, left)) as results:
                for result in results:
                    if result.failure is not None:
                        names = (each.question_id for each in left[result.place][1])
                        failed |= dict.fromkeys(names, result.failure)
                        continue
                    n_made += result.value
                    if n_seen < n_made:  # no worker here has counted it already
                        count(result.value)
            done = _done(writer.store, wanted, failed)
            seconds = time.monotonic() - started
    store = TraceStore.open(out)
    return ExtractSummary(
        store_path=store.name,
        n_asked=len(wanted),
        n_new=len({each.question_id for each in wanted} & done - before),  # other shards may write too
        n_traces=len(store),
        failures=dict(Counter(item["reason"] for item in store.failures)),
        seconds=seconds,
        load_seconds=description["load_seconds"],
        bytes_by_array=store.n_bytes(),
        shapes=_typical_shapes(store),
        notes=description["notes"],
        quarantined={name: reason for name, reason in failed.items() if name not in done},
    )


def _start(
    engine: Executor, config: ExtractConfig, out: Path | str, holder: str, here: Mapping[str, Any]
) -> Callable[[], Worker]:
    """Loads the model in a worker; one in this process tells more than a remote one can."""
    if isinstance(engine, SerialExecutor):
        return partial(load_worker, config, out, holder, **here)
    # equal threads everywhere: sums of several threads round differently
    threads = config.model.threads or engine.n_threads
    model = config.model.model_copy(update={"threads": threads})
    is_local = isinstance(storage_backend(out), LocalBackend)
    there = Path(out).absolute() if is_local and isinstance(out, Path) else out
    return partial(load_worker, config.model_copy(update={"model": model}), there, holder)


def _prepared(
    workers: Workers, description: Mapping[str, Any], out: Path | str, wanted: Sequence[Question]
) -> TraceStore:
    """The store; a new one is made when all else is sound."""
    is_there = storage_backend(out).exists()
    done = open_or_create(out, **description["store"]).done_question_ids() if is_there else set()
    left = [question for question in wanted if question.question_id not in done]
    if done:
        _log.info("%d questions are in the store already, %d are left", len(done), len(left))
    if left:
        size = _ESTIMATED_TOGETHER
        chunks = [left[first : first + size] for first in range(0, len(left), size)]
        expected = sum(found.result() for found in workers(expected_bytes, chunks))
        _log.info("expected on disk: at most %s MiB", f"{expected / 2**20:,.0f}")
        place = storage_backend(out)
        if isinstance(place, LocalBackend):
            check_fits(place.path, expected)
    return open_or_create(out, **description["store"])


def _done(store: TraceStore, wanted: Sequence[Question], failed: Collection[str]) -> set[str]:
    """Questions that are in the store after all batches.

    Raises:
        StoreError: If a question is in no committed part though all batches are done.
    """
    store.refresh()
    done = store.done_question_ids()
    names = [question.question_id for question in wanted]
    lost = [name for name in names if name not in done and name not in failed]
    if lost:
        raise StoreError(
            f"{len(lost)} of {len(names)} questions are in no part of {store.name}, though all "
            f"were done (the first is {lost[0]!r}): a part was removed meanwhile\n"
            f"  Run the same command again to do them"
        )
    return done


def _typical_shapes(store: TraceStore) -> dict[str, str]:
    """Axes of attention and hidden states of the trace of median length."""
    if not len(store):
        return {}
    lengths = [record.length for record in store.records]
    length, shape = int(np.sort(lengths)[len(lengths) // 2]), store.shape
    sizes = {
        "attention": (len(shape.attention_layers), shape.n_heads, length, length),
        "hidden": (len(shape.hidden_layers), length, shape.hidden_size),
    }
    return {
        name: " x ".join(map(str, axes))
        for name, axes in sizes.items()
        if name in store.arrays or f"{name}_fixed" in store.arrays
    }
