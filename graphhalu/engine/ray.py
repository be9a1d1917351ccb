"""Executor on Ray: the connection to a cluster, and workers as actors that are replaced when they die.

Ray gives an actor's task at most once or at least once. Here it is at most once, and this process
does the rest: it replaces a worker that died, gives its item to another one, and counts. So the
count is exact, an item waits for no worker that may never come back, and one on which three
workers died is quarantined while the rest goes on. An item may still be done twice (a machine that
was only out of reach finishes it too): the work must bear that.

Ray has no passwords by default: whoever reaches its ports runs code on every node. A Ray that is
started here listens on loopback only and has no dashboard; for a cluster set
``RAY_AUTH_MODE=token`` on every node.
"""

import logging
import os
import re
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
from typing import Any, Final

from pydantic import Field

from graphhalu.core.config import Config
from graphhalu.core.errors import GraphhaluError, MissingExtraError, UsageError, WorkerError
from graphhalu.engine.executors import Executor, Start, TaskResult, Work, Workers

LOCAL: Final = "local"
"""Starts a Ray of this machine and ends it with the run."""

MOST_ATTEMPTS: Final = 3
"""Workers that may die on an item before it is quarantined."""

_MOST_QUARANTINED: Final = 3
"""Items quarantined with none done, after which it is not the items that are at fault."""

_MOST_STARTS: Final = 10
"""Workers in a row that end before they are ready."""

_HOST_PORT: Final = re.compile(r"(?:\[([0-9a-fA-F:]+)\]|([\w.-]+)):(\d{1,5})")
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_REACH_S: Final = 10.0
_POLL_S: Final = 1.0
_QUIET_S: Final = 20.0
_ABANDON_S: Final = 5.0

_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # ray writes every lost node and worker to stdout, where results go; they are logged here
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    # of a Ray that is started here: its workers are the run, and not something in the background
    "RAY_worker_niceness": "0",
}
"""Read when ray is imported; settings of the user stay."""

_log = logging.getLogger(__name__)


class RayExecutor(Config, Executor):
    """Ray actors on one machine or many; its fields are options of the commands that spread their work."""

    ray: str | None = None
    """Spread the work over Ray: local for this machine, auto, or HOST:PORT of a cluster that this
    machine is a node of (set RAY_AUTH_MODE=token on all nodes)."""
    ray_actors: int | None = Field(default=None, ge=1)
    """Workers; by default as many as fit."""
    ray_cpus: int = Field(default=1, ge=1)
    """CPUs and threads of a worker."""
    ray_gpus: float = Field(default=0.0, ge=0)
    """GPUs of a worker."""
    ray_wait: float = Field(default=300.0, ge=0)
    """Seconds to wait while no worker is ready."""

    def if_asked(self) -> "RayExecutor | None":
        """This executor, if there is an address; without one no settings of workers may be given.

        Raises:
            UsageError: If the address is none, or a setting of workers has no Ray to go to.
        """
        if self.ray is None:
            if self.model_fields_set:
                raise UsageError("--ray-actors, --ray-cpus, --ray-gpus and --ray-wait go with --ray")
            return None
        check_address(self.ray)
        if self.ray_gpus > 1 and self.ray_gpus != int(self.ray_gpus):
            raise UsageError(f"a worker has a share of one GPU or whole ones, got {self.ray_gpus:g}")
        return self

    @property
    def n_threads(self) -> int:
        """Threads of a worker."""
        return self.ray_cpus

    @contextmanager
    def workers(self, start: Start, at_most: int) -> Iterator[Workers]:
        """Actors, which are killed at the end.

        Raises:
            MissingExtraError: If Ray is not installed.
            WorkerError: If there is no such cluster, or this machine is too small.
        """
        with connected(self.ray or LOCAL) as ray, _sigterm_as_interrupt():
            n_fit = self._n_fit(ray)
            n_actors = min(at_most, self.ray_actors or max(1, n_fit))
            kind = ray.remote(_Actor).options(
                num_cpus=self.ray_cpus, num_gpus=self.ray_gpus, max_restarts=0, max_task_retries=0
            )
            hire = partial(kind.remote, start, str(Path.cwd()))
            actors = _ActorPool(ray, hire, n_actors, self.ray_wait, partial(self._shortage, ray))
            try:
                yield actors.map
            finally:
                actors.dismiss()

    def _n_fit(self, ray: Any) -> int:
        """Workers that the cluster has room for now."""
        total = ray.cluster_resources()
        fits = [int(total.get("CPU", 0) // self.ray_cpus)]
        if self.ray_gpus:
            fits.append(int(total.get("GPU", 0) // self.ray_gpus))
        elif total.get("GPU", 0):
            _log.warning("the cluster has %g GPUs, and no worker uses one: --ray-gpus 1", total["GPU"])
        if self.ray in (None, LOCAL) and not min(fits):
            raise WorkerError(self._shortage(ray))
        return min(fits)

    def _shortage(self, ray: Any) -> str:
        total = ray.cluster_resources()
        return (
            f"no worker is ready: each needs {self.ray_cpus} CPUs and {self.ray_gpus:g} GPUs, and the "
            f"cluster has {total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs\n"
            f"  Add nodes to it, or ask for less with --ray-cpus and --ray-gpus"
        )


class _Actor:
    """A worker in Ray: a state, made with its first item."""

    def __init__(self, start: Start, folder: str) -> None:
        self.state = cache(start)
        # relative paths mean here what they mean where the command was given
        with suppress(OSError):
            os.chdir(folder)

    def ready(self) -> None:
        """Return at once: the answer shows that the worker is there."""

    def run(self, function: Work, item: Any) -> tuple[str, Any]:
        """``value``, ``error`` (for the user) or ``fault``, with what belongs to it."""
        try:
            return "value", function(self.state(), item)
        except GraphhaluError as error:
            error.add_note(f"in a worker on {socket.gethostname()}")
            return "error", error
        except Exception as error:  # noqa: BLE001 - any other fault may be the machine's
            return "fault", " ".join(f"{type(error).__name__}: {error}".split())


@dataclass(eq=False)
class _ActorPool:
    """Actors at work on the items of one call of :meth:`map` at a time.

    Attributes:
        ray: The module, connected.
        hire: Starts an actor.
        n_actors: Actors at the same time, at most.
        wait_s: How long to wait, in seconds, while no actor is ready.
        shortage: Describes why none is ready.
    """

    ray: Any
    hire: Callable[[], Any]
    n_actors: int
    wait_s: float
    shortage: Callable[[], str]
    idle: list[Any] = field(default_factory=list)
    starting: dict[Any, Any] = field(default_factory=dict)
    running: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    n_false_starts: int = 0
    waiting_since: float = field(default_factory=lambda: time.monotonic())  # noqa: PLW0108 - as of then
    is_logged: bool = False

    def map(self, function: Work, items: Sequence[Any]) -> Generator[TaskResult, None, None]:
        """Results of the items, as :data:`graphhalu.engine.executors.Workers` says."""
        waiting, attempts = deque(range(len(items))), Counter[int]()
        n_done = n_quarantined = 0
        try:
            while waiting or self.running:
                self._fill(len(waiting) + len(self.running))
                while waiting and self.idle:
                    actor, place = self.idle.pop(), waiting.popleft()
                    self.running[actor.run.remote(function, items[place])] = actor, place
                for ref in self._finished():
                    actor, place = self.running.pop(ref)
                    kind, value = self._outcome(ref, actor)
                    attempts[place] += 1
                    if kind == "error":
                        raise value
                    if kind == "value":
                        n_done += 1
                        yield TaskResult(place, value)
                    elif attempts[place] < MOST_ATTEMPTS:
                        waiting.append(place)
                    else:
                        n_quarantined += 1
                        if not n_done and n_quarantined >= _MOST_QUARANTINED:
                            raise WorkerError(
                                f"no worker lives long enough to do anything: {value}\n"
                                f"  See its log on that machine, in the logs of its Ray session"
                            )
                        yield TaskResult(place, None, f"{value} ({MOST_ATTEMPTS} attempts)")
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
        self._check_timeout()
        return [ref for ref in ready if ref in self.running]

    def _check_timeout(self) -> None:
        """Log that no worker finds room on the cluster, and give up after ``wait_s``."""
        now = time.monotonic()
        waited = now - self.waiting_since
        if self.running or self.idle:
            self.waiting_since, self.is_logged = now, False
        elif waited > self.wait_s:
            raise WorkerError(f"{self.shortage()}\n  It was waited for {self.wait_s:g} s (--ray-wait)")
        elif waited > _QUIET_S and not self.is_logged:
            self.is_logged = True
            _log.info("waiting: %s", self.shortage())

    def _started(self, ref: Any) -> None:
        actor = self.starting.pop(ref)
        try:
            self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            self.n_false_starts += 1
            if self.n_false_starts >= _MOST_STARTS and not (self.running or self.idle):
                reason = " ".join(str(error).split())[:300]
                raise WorkerError(
                    f"{self.n_false_starts} workers ended before they were ready: {reason}\n"
                    f"  Every node needs the same graphhalu, Python and Ray as this machine"
                ) from None
        else:
            self.n_false_starts = 0
            self.idle.append(actor)

    def _outcome(self, ref: Any, actor: Any) -> tuple[str, Any]:
        """Outcome of a task; a worker that is dead or in doubt is not used again."""
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


def check_address(address: str) -> tuple[str, int] | None:
    """Host and port of a cluster; ``None`` for ``local`` and ``auto``.

    Raises:
        UsageError: If it is none of these.
    """
    if address in {LOCAL, "auto"}:
        return None
    match = _HOST_PORT.fullmatch(address)
    if match is None or not 0 < int(match[3]) < 2**16:
        raise UsageError(
            f"a Ray cluster is given as local, auto or HOST:PORT, got {address!r}\n"
            f"  Write --ray=local for this machine, or --ray=HOST:PORT"
        )
    return match[1] or match[2], int(match[3])


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module ``ray``, connected; a connection that is there already is used and kept.

    Args:
        address: ``local``, ``auto`` or ``HOST:PORT``.

    Raises:
        MissingExtraError: If Ray is not installed.
        UsageError: If the address cannot be read.
        WorkerError: If no cluster answers there.
    """
    place = check_address(address)
    is_loopback = address == LOCAL or (place is not None and place[0] in _LOOPBACK)
    ray = _import_ray(is_loopback=is_loopback)
    if ray.is_initialized():
        yield ray
        return
    if place is not None:
        try:
            socket.create_connection(place, timeout=_REACH_S).close()
        except OSError as error:
            raise _no_cluster(f"{place[0]}:{place[1]}", error.strerror or str(error)) from None
    options: dict[str, Any] = {"_node_ip_address": "127.0.0.1"} if is_loopback else {}
    if address == LOCAL:
        options["include_dashboard"] = False
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except Exception as error:  # noqa: BLE001 - ray raises bare exceptions here
        raise _no_cluster(address, " ".join(str(error).split())) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _import_ray(*, is_loopback: bool) -> Any:
    # without it 127.0.0.1 becomes the machine's outer address, and the connection hangs
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if is_loopback else {}
    for name, value in {**_ENVIRONMENT, **loopback}.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise MissingExtraError(
            "--ray needs Ray, which is not installed\n  pip install 'graphhalu[ray]'"
        ) from None
    return ray


def _no_cluster(address: str, reason: str) -> WorkerError:
    if address == LOCAL:
        return WorkerError(
            f"Ray does not start on this machine: {reason}\n"
            f"  A busy machine can be too slow for it: try again, or leave --ray out"
        )
    return WorkerError(
        f"no Ray cluster can be used at {address}: {reason}\n"
        f"  Start one:  ray start --head --port=6379  and on every other machine  "
        f"ray start --address=HOST:6379; this machine must be one of them"
    )


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` where SIGTERM comes, so that workers are told to stop.

    Only the main thread can take signals; in any other nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
