"""The extraction run: questions to traces in a store, batch by batch, and resumable.

Whatever a killed run had not committed is done again by the next one; what it had committed is
not. The batches run on an executor: in this process, or on the workers of a cluster.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from graphhalu.core.errors import StoreError
from graphhalu.core.progress import Progress, no_progress
from graphhalu.core.provenance import provenance
from graphhalu.datasets.question import Question
from graphhalu.datasets.registry import load_questions
from graphhalu.engine.executors import Executor, SerialExecutor, Workers
from graphhalu.extract.extraction import dataset_identity
from graphhalu.extract.settings import ExtractConfig
from graphhalu.extract.worker import (
    Described,
    QuestionBatch,
    Shard,
    Worker,
    batches_left,
    describe,
    expected_bytes,
    extract_batch,
    load_worker,
    question_batches,
)
from graphhalu.models.cards import resolve_model
from graphhalu.traces.disk import check_fits
from graphhalu.traces.local import LocalBackend, backend_of, check_place, is_there
from graphhalu.traces.storage import MAIN
from graphhalu.traces.store import TraceStore, open_or_create

_ESTIMATED_TOGETHER = 1024
"""Questions whose size one worker estimates at a time."""

_log = logging.getLogger(__name__)


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


def extract(
    config: ExtractConfig,
    out: Path | str,
    *,
    engine: Executor | None = None,
    shard: Shard | None = None,
    on_progress: Progress = no_progress,
) -> ExtractSummary:
    """Answer the questions, capture attention and hidden states, and commit them to a store.

    What a user should see before the run is logged under ``graphhalu`` at the level INFO.

    Args:
        config: What to do.
        out: The store; an existing one is resumed or extended if it has the same configuration.
        engine: Where the work runs; by default in this process.
        shard: The share of the questions that is done; by default all.
        on_progress: Called after every question; with remote workers, after every batch.

    Raises:
        StoreMismatchError: If the store holds another configuration; names the fields.
        GraphhaluError: If the data set, the model, the disk or the cluster cannot be used.
    """
    resolve_model(config.model.name)  # a mistyped name is told before a data set is read
    check_place(out)  # and what is no store, before a model is loaded
    dataset = config.dataset
    n_wanted, fields = config.num_samples, dataset.fields or None
    questions = load_questions(
        dataset.name, dataset.path, num_samples=n_wanted, seed=dataset.seed, fields=fields
    )
    batches = question_batches(questions, config, shard)
    engine, counter = engine or SerialExecutor(), _Counter(on_progress)
    holder = MAIN if shard is None else shard.writer
    start = _start(engine, config, out, holder, counter.see)
    with engine.workers(start, max(1, len(batches))) as workers:
        about = (dataset_identity(dataset), len(questions))
        described: Described = next(workers.map(describe, [about])).result()
        for note in described.notes:
            _log.info(note)
        asked = [question for batch in batches for question in batch.questions]
        store = _prepared(workers, described, out, asked)
        with store.writer(holder) as writer:
            quarantined = _run(workers, writer.store, batches, counter)
            seconds = counter.seconds
    store = TraceStore.open(out)
    return ExtractSummary(
        store_path=store.name,
        n_asked=len(asked),
        n_new=counter.n_new,
        n_traces=len(store),
        failures=dict(Counter(item["reason"] for item in store.failures)),
        seconds=seconds,
        load_seconds=described.load_seconds,
        bytes_by_array=store.n_bytes(),
        shapes=_typical_shapes(store),
        notes=described.notes,
        quarantined=quarantined,
    )


class _Counter:
    """Questions done, and the time since the first batch began."""

    def __init__(self, on_progress: Progress) -> None:
        self.on_progress = on_progress
        self.n_total = self.n_seen = self.n_new = 0
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def begin(self, n_total: int) -> None:
        self.n_total, self.started = n_total, time.monotonic()

    def see(self, n_questions: int = 1) -> None:
        # those of a batch that were done already are answered again with it
        self.n_seen = min(self.n_seen + n_questions, self.n_total)
        self.on_progress(self.n_seen, self.n_total)


def _start(
    engine: Executor, config: ExtractConfig, out: Path | str, holder: str, on_answered: Callable[[], None]
) -> Callable[[], Worker]:
    """Loads the model in a worker; one in this process tells more than a remote one can."""
    if isinstance(engine, SerialExecutor):
        return partial(load_worker, config, out, holder, on_answered)
    # equal threads everywhere: sums of several threads round differently
    threads = config.model.threads or engine.n_threads
    model = config.model.model_copy(update={"threads": threads})
    is_local = isinstance(backend_of(out), LocalBackend)
    there = Path(out).absolute() if is_local and isinstance(out, Path) else out
    return partial(load_worker, config.model_copy(update={"model": model}), there, holder)


def _prepared(
    workers: Workers, described: Described, out: Path | str, asked: Sequence[Question]
) -> TraceStore:
    """The store; a new one is made when all else is sound."""

    def opened() -> TraceStore:
        return open_or_create(
            out,
            configuration=described.identity,
            shape=described.shape,
            arrays=described.arrays,
            provenance={**provenance(), "config": described.config.model_dump(mode="json")},
        )

    done = opened().done_question_ids() if is_there(out) else set()
    left = [question for question in asked if question.question_id not in done]
    if done:
        _log.info("%d questions are in the store already, %d are left", len(done), len(left))
    if left:
        size = _ESTIMATED_TOGETHER
        chunks = [left[first : first + size] for first in range(0, len(left), size)]
        expected = sum(found.result() for found in workers.map(expected_bytes, chunks))
        _log.info("expected on disk: at most %s MiB", f"{expected / 2**20:,.0f}")
        place = backend_of(out)
        if isinstance(place, LocalBackend):
            check_fits(place.path, expected)
    return opened()


def _run(
    workers: Workers, store: TraceStore, batches: Sequence[QuestionBatch], counter: _Counter
) -> dict[str, str]:
    """Do the batches that are left; gives the questions that were quarantined, and why.

    Raises:
        StoreError: If a question is in no committed part though all batches are done.
    """
    planned = [name for batch in batches for name in batch.question_ids]
    before, quarantined = store.done_question_ids(), dict[str, str]()
    left = batches_left(batches, before)
    counter.begin(len(set(planned) - before))
    n_made = 0
    with closing(workers.map(extract_batch, left)) as results:
        for result in results:
            if result.failure is not None:
                quarantined |= dict.fromkeys(left[result.place].question_ids, result.failure)
                continue
            n_made += result.value
            if counter.n_seen < n_made:  # no worker here has told it already
                counter.see(result.value)
    store.refresh()
    done = store.done_question_ids()
    # other shards may write at the same time
    counter.n_new = len(done.intersection(planned) - before)
    lost = [name for name in planned if name not in done and name not in quarantined]
    if lost:
        raise StoreError(
            f"{len(lost)} of {len(planned)} questions are in no part of {store.name}, though all "
            f"were done (the first is {lost[0]!r}): a part was removed meanwhile\n"
            f"  Run the same command again to do them"
        )
    return {name: reason for name, reason in quarantined.items() if name not in done}


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
