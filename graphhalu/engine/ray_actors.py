"""Workers as Ray actors: they hold the state, and what dies is started and done again.

Ray gives an actor's task at most once or at least once. Here it is at most once, and this process
does the rest: it replaces a worker that died, gives its item to another one, and counts. So the
count is exact, an item waits for no worker that may never come back, and one on which three
workers died is quarantined while the rest goes on. An item may still be done twice (a machine that
was only out of reach finishes it too): the work must bear that.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

from graphhalu.core.errors import ClusterError, GraphhaluError, ProcessLostError
from graphhalu.engine.cluster import LOCAL, check_address, connected
from graphhalu.engine.executors import Executor, Start, TaskResult, Work, Workers

MOST_ATTEMPTS: Final = 3
"""Workers that may die on an item before it is quarantined."""

_MOST_QUARANTINED: Final = 3
"""Items quarantined with none done, after which it is not the items that are at fault."""

_MOST_STARTS: Final = 10
"""Workers in a row that end before they are ready."""

_log = logging.getLogger(__name__)

_POLL_S: Final = 1.0
_QUIET_S: Final = 20.0
_ABANDON_S: Final = 5.0


@dataclass(frozen=True)
class RayExecutor(Executor):
    """Ray actors on one machine or many.

    Attributes:
        address: ``local``, ``auto`` or ``HOST:PORT``.
        n_actors: Workers; by default as many as fit on the cluster.
        cpus: CPUs of a worker, which are its threads too.
        gpus: GPUs of a worker.
        wait_s: How long to wait, in seconds, while no worker is ready.
    """

    address: str = LOCAL
    n_actors: int | None = None
    cpus: int = 1
    gpus: float = 0.0
    wait_s: float = 300.0

    @property
    def n_threads(self) -> int:
        """Threads of a worker."""
        return self.cpus

    @contextmanager
    def workers(self, start: Start, at_most: int) -> Iterator[Workers]:
        """Actors, which are killed at the end.

        Raises:
            MissingExtraError: If Ray is not installed.
            ClusterError: If there is no such cluster, or this machine is too small.
        """
        check_address(self.address)
        with connected(self.address) as ray, sigterm_as_interrupt():
            n_fit = self._n_fit(ray)
            kind = ray.remote(_Actor).options(
                num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0, max_task_retries=0
            )
            hire = partial(kind.remote, start, str(Path.cwd()))
            n_actors = min(at_most, self.n_actors or max(1, n_fit))
            timeout = _ReadyTimeout(self.wait_s, partial(self._shortage, ray))
            actors = _ActorPool(ray, hire, n_actors, timeout)
            try:
                yield actors
            finally:
                actors.dismiss()

    def _n_fit(self, ray: Any) -> int:
        """Workers that the cluster has room for now."""
        total = ray.cluster_resources()
        fits = [int(total.get("CPU", 0) // self.cpus)]
        if self.gpus:
            fits.append(int(total.get("GPU", 0) // self.gpus))
        if self.address == LOCAL and not min(fits):
            raise ClusterError(self._shortage(ray))
        return min(fits)

    def _shortage(self, ray: Any) -> str:
        total = ray.cluster_resources()
        return (
            f"no worker is ready: each needs {self.cpus} CPUs and {self.gpus:g} GPUs, and the "
            f"cluster has {total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs\n"
            f"  Add nodes to it, or ask for less with --ray-cpus and --ray-gpus"
        )


class _Actor:
    """What runs in Ray: a state, made with its first item."""

    def __init__(self, start: Start, folder: str) -> None:
        self.state = cache(start)
        # relative paths mean here what they mean where the command was given
        with suppress(OSError):
            os.chdir(folder)

    def ready(self) -> None:
        """Nothing: that it comes back says that the worker is there."""

    def run(self, function: Work, item: Any) -> tuple[str, Any]:
        """``value``, ``error`` (for the user) or ``fault``, with what belongs to it."""
        try:
            return "value", function(self.state(), item)
        except GraphhaluError as error:
            error.add_note(f"in a worker on {socket.gethostname()}")
            return "error", error
        except Exception as error:  # noqa: BLE001 - any other fault may be the machine's
            return "fault", " ".join(f"{type(error).__name__}: {error}".split())


@dataclass
class _ReadyTimeout:
    """Waits for room on the cluster, tells that it does, and gives up in the end."""

    wait_s: float
    shortage: Callable[[], str]
    since: float = field(default_factory=lambda: time.monotonic())  # noqa: PLW0108 - as of then
    has_told: bool = False

    def check(self, *, is_at_work: bool) -> None:
        now = time.monotonic()
        if is_at_work:
            self.since, self.has_told = now, False
        elif now - self.since > self.wait_s:
            message = f"{self.shortage()}\n  It was waited for {self.wait_s:g} s (--ray-wait)"
            raise ClusterError(message)
        elif now - self.since > _QUIET_S and not self.has_told:
            self.has_told = True
            _log.info("waiting: %s", self.shortage())


@dataclass
class _Attempts:
    """Counts attempts, and says when an item is quarantined."""

    by_item: Counter[int] = field(default_factory=Counter)
    n_done: int = 0
    n_quarantined: int = 0

    def failed(self, place: int, reason: str) -> TaskResult | None:
        """The end of an item, or ``None`` if it is tried again.

        Raises:
            ProcessLostError: If nothing was ever done, and several items have come to this.
        """
        self.by_item[place] += 1
        if self.by_item[place] < MOST_ATTEMPTS:
            return None
        self.n_quarantined += 1
        if not self.n_done and self.n_quarantined >= _MOST_QUARANTINED:
            message = (
                f"no worker lives long enough to do anything: {reason}\n"
                f"  See its log on that machine, in the logs of its Ray session"
            )
            raise ProcessLostError(message)
        return TaskResult(place, None, f"{reason} ({MOST_ATTEMPTS} attempts)")


class _ActorPool(Workers):
    def __init__(self, ray: Any, hire: Callable[[], Any], n_actors: int, timeout: _ReadyTimeout) -> None:
        self.ray = ray
        self.hire = hire
        self.n_actors = n_actors
        self.timeout = timeout
        self.idle: list[Any] = []
        self.starting: dict[Any, Any] = {}
        self.running: dict[Any, tuple[Any, int]] = {}
        self.n_false_starts = 0

    def map(self, function: Work, items: Sequence[Any]) -> Generator[TaskResult, None, None]:
        waiting, attempts = deque(range(len(items))), _Attempts()
        try:
            while waiting or self.running:
                self._fill(len(waiting) + len(self.running))
                while waiting and self.idle:
                    actor, place = self.idle.pop(), waiting.popleft()
                    self.running[actor.run.remote(function, items[place])] = actor, place
                for ref in self._finished():
                    actor, place = self.running.pop(ref)
                    kind, value = self._outcome(ref, actor)
                    if kind == "error":
                        raise value
                    if kind == "value":
                        attempts.n_done += 1
                        yield TaskResult(place, value)
                    elif (done := attempts.failed(place, value)) is not None:
                        yield done
                    else:
                        waiting.append(place)
        finally:
            self._abandon()

    def dismiss(self) -> None:
        """End all workers."""
        for actor in (*self.idle, *self.starting.values()):
            self.ray.kill(actor)
        self.idle, self.starting = [], {}

    def _fill(self, n_items: int) -> None:
        wanted = min(self.n_actors, n_items)
        for _ in range(wanted - len(self.idle) - len(self.starting) - len(self.running)):
            actor = self.hire()
            self.starting[actor.ready.remote()] = actor

    def _finished(self) -> list[Any]:
        """Tasks that have ended; workers that are ready by now become idle."""
        refs = [*self.running, *self.starting]
        ready, _ = self.ray.wait(refs, num_returns=1, timeout=_POLL_S)
        for ref in ready:
            if ref in self.starting:
                self._started(ref)
        self.timeout.check(is_at_work=bool(self.running or self.idle))
        return [ref for ref in ready if ref in self.running]

    def _started(self, ref: Any) -> None:
        actor = self.starting.pop(ref)
        try:
            self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            self.n_false_starts += 1
            if self.n_false_starts >= _MOST_STARTS and not (self.running or self.idle):
                reason = " ".join(str(error).split())[:300]
                message = (
                    f"{self.n_false_starts} workers ended before they were ready: {reason}\n"
                    f"  Every node needs the same graphhalu, Python and Ray as this machine"
                )
                raise ProcessLostError(message) from None
        else:
            self.n_false_starts = 0
            self.idle.append(actor)

    def _outcome(self, ref: Any, actor: Any) -> tuple[str, Any]:
        """What a task gave; a worker that is dead or in doubt is not used again."""
        try:
            kind, value = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            kind, value = "fault", f"its worker was lost ({type(error).__name__})"
        if kind == "fault":
            self.ray.kill(actor)
        else:
            self.idle.append(actor)
        return kind, value

    def _abandon(self) -> None:
        """End the workers that are still at something, and wait until they have ended."""
        for actor, _ in self.running.values():
            self.ray.kill(actor)
        if self.running:
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=_ABANDON_S)
        self.running = {}


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` where SIGTERM comes, so that workers are told to stop.

    Only the main thread can take signals; in any other nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
