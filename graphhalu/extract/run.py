"""The extraction run: questions to traces in a store, wave by wave, and resumable.

Whatever a killed run had not committed is done again by the next one; what it had committed is
not. The waves run on an engine: in this process, or on the workers of a cluster.
"""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from graphhalu.datasets.registry import load_questions
from graphhalu.engine.base import Engine, Workers
from graphhalu.engine.here import Here
from graphhalu.errors import StoreError
from graphhalu.extract.extraction import dataset_identity
from graphhalu.extract.plan import Plan, Shard, make_plan
from graphhalu.extract.settings import ExtractConfig
from graphhalu.extract.worker import (
    Described,
    Worker,
    describe,
    expected_bytes,
    extract_wave,
    load_worker,
)
from graphhalu.models.cards import resolve_model
from graphhalu.traces.disk import check_fits
from graphhalu.traces.local import LocalBackend, backend_of, check_place, is_there
from graphhalu.traces.store import TraceStore, open_or_create

_ESTIMATED_TOGETHER = 1024
"""Questions whose size one worker estimates at a time."""


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
        set_aside: Questions on which workers died again and again, and why; they are not done.
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
    set_aside: dict[str, str] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return sum(self.bytes_by_array.values())


def extract(
    config: ExtractConfig,
    out: Path | str,
    *,
    engine: Engine | None = None,
    shard: Shard | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> ExtractSummary:
    """Answer the questions, capture attention and hidden states, and commit them to a store.

    Args:
        config: What to do.
        out: The store; an existing one is resumed or extended if it has the same configuration.
        engine: Where the work runs; by default in this process.
        shard: The share of the questions that is done; by default all.
        on_progress: Called after every batch; with workers elsewhere, after every wave.
        on_note: Called with one line that a user should see before the run.

    Raises:
        StoreMismatchError: If the store holds another configuration; names the fields.
        GraphhaluError: If the data set, the model, the disk or the cluster cannot be used.
    """
    tell = on_note or (lambda _: None)
    resolve_model(config.model.name)  # a mistyped name is told before a data set is read
    check_place(out)  # and what is no store, before a model is loaded
    dataset = config.dataset
    questions = load_questions(
        dataset.name, dataset.path,
        num_samples=config.num_samples, seed=dataset.seed, fields=dataset.fields or None,
    )  # fmt: skip
    plan = make_plan(questions, config, shard)
    engine, count = engine or Here(), _Count(on_progress or (lambda _: None))
    start = _start(engine, config, out, plan.writer, count=count, tell=tell)
    with engine.workers(start, max(1, len(plan.waves))) as workers:
        about = (dataset_identity(dataset), len(questions))
        described = next(workers.map(describe, [about])).result()
        for note in described.notes:
            tell(note)
        store = _prepared(workers, described, out, plan, tell)
        set_aside = _run(workers, store, plan, count)
    return _summary(
        TraceStore.open(out), n_asked=len(plan.questions), count=count,
        described=described, set_aside=set_aside,
    )  # fmt: skip


class _Count:
    """Questions done, and the time since the first wave began."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self.on_progress = on_progress
        self.n_total = self.n_seen = 0
        self.n_new = 0
        self.started = time.monotonic()
        self.seconds = 0.0

    def begin(self, n_total: int) -> None:
        self.n_total, self.started = n_total, time.monotonic()

    def see(self, n_questions: int) -> None:
        # those of a wave that were done already are answered again with it
        self.n_seen = min(self.n_seen + n_questions, self.n_total)
        self.on_progress(Progress(self.n_seen, self.n_total, time.monotonic() - self.started))

    def end(self, n_new: int) -> None:
        self.n_new = n_new
        self.seconds = time.monotonic() - self.started


def _start(
    engine: Engine,
    config: ExtractConfig,
    out: Path | str,
    holder: str,
    *,
    count: "_Count",
    tell: Callable[[str], None],
) -> Callable[[], Worker]:
    """Loads the model in a worker; one in this process tells more than one elsewhere can."""
    if isinstance(engine, Here):
        return partial(load_worker, config, out, holder, count.see, tell)
    # equal threads everywhere: sums of several threads round differently
    threads = config.model.threads or engine.n_threads
    model = config.model.model_copy(update={"threads": threads})
    is_local = isinstance(backend_of(out), LocalBackend)
    there = Path(out).absolute() if is_local and isinstance(out, Path) else out
    return partial(load_worker, config.model_copy(update={"model": model}), there, holder)


def _prepared(
    workers: Workers,
    described: Described,
    out: Path | str,
    plan: Plan,
    tell: Callable[[str], None],
) -> TraceStore:
    """The store; a new one is made when all else is sound."""

    def opened() -> TraceStore:
        return open_or_create(
            out, configuration=described.identity, shape=described.shape, arrays=described.arrays
        )

    done = opened().done_question_ids() if is_there(out) else set()
    left = [question for question in plan.questions if question.question_id not in done]
    if done:
        tell(f"{len(done)} questions are in the store already, {len(left)} are left")
    if left:
        size = _ESTIMATED_TOGETHER
        chunks = [left[first : first + size] for first in range(0, len(left), size)]
        expected = sum(found.result() for found in workers.map(expected_bytes, chunks))
        tell(f"expected on disk: at most {expected / 2**20:,.0f} MiB")
        place = backend_of(out)
        if isinstance(place, LocalBackend):
            check_fits(place.path, expected)
    return opened()


def _run(workers: Workers, store: TraceStore, plan: Plan, count: _Count) -> dict[str, str]:
    """Do the waves that are left; gives the questions that were set aside, and why.

    Raises:
        StoreError: If a question is in no committed part though all waves are done.
    """
    set_aside: dict[str, str] = {}
    with store.writer(plan.writer) as writer:
        before = writer.store.done_question_ids()
        planned, waves = {q.question_id for q in plan.questions}, plan.left(before)
        count.begin(len(planned - before))
        n_made = 0
        with closing(workers.map(extract_wave, waves)) as found:
            for each in found:
                if each.failure is not None:
                    set_aside |= dict.fromkeys(waves[each.place].question_ids, each.failure)
                    continue
                n_made += each.value
                if count.n_seen < n_made:  # no worker here has told it already
                    count.see(each.value)
        writer.store.refresh()
        done = writer.store.done_question_ids()
        # other shards may write at the same time
        count.end(len(done.intersection(planned) - before))
    return _require_done(plan, done, set_aside, store.name)


def _require_done(
    plan: Plan, done: set[str], set_aside: dict[str, str], name: str
) -> dict[str, str]:
    planned = [question.question_id for question in plan.questions]
    lost = [each for each in planned if each not in done and each not in set_aside]
    if lost:
        message = (
            f"{len(lost)} of {len(planned)} questions are in no part of {name}, though all were "
            f"done (the first is {lost[0]!r}): a part was removed meanwhile\n"
            f"  Run the same command again to do them"
        )
        raise StoreError(message)
    return {each: reason for each, reason in set_aside.items() if each not in done}


def _summary(
    store: TraceStore,
    *,
    n_asked: int,
    count: _Count,
    described: Described,
    set_aside: dict[str, str],
) -> ExtractSummary:
    return ExtractSummary(
        store_path=store.name,
        n_asked=n_asked,
        n_new=count.n_new,
        n_traces=len(store),
        failures=dict(Counter(item["reason"] for item in store.failures)),
        seconds=count.seconds,
        load_seconds=described.load_seconds,
        bytes_by_array=store.n_bytes(),
        shapes=_typical_shapes(store),
        notes=described.notes,
        set_aside=set_aside,
    )


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
