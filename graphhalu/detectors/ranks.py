"""Processes that train one network together: rank zero asks, the others are started afresh.

Lightning's own launchers either run the whole script again or hand weights back in a pickled
file. Here the process that asked is rank zero and keeps all it has; the others are spawned, get
ready, and are told their place through the variables that Lightning and torch read.
"""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Final, NamedTuple

import torch

from graphhalu.errors import ProcessLostError, UsageError

Prepare = Callable[..., Callable[[], object]]
"""Gets everything ready in a started process, and gives what runs in step with the others."""

_PATIENCE_S: Final = 20.0
"""How long a rank has to end, or to say why it ended."""
_GUARD: Final = 'A script that trains on several devices needs:  if __name__ == "__main__":'
_READY: Final = "ready"
_LOOPBACK: Final = ("lo", "lo0")


class Place(NamedTuple):
    """Where one rank stands.

    Attributes:
        rank: Its number.
        n_ranks: All of them, rank zero counted.
        port: Of this machine, where they meet.
        n_threads: CPU threads of each.
    """

    rank: int
    n_ranks: int
    port: int
    n_threads: int

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Torch and Lightning find this rank inside; variables and threads come back."""
        variables = {
            "LOCAL_RANK": str(self.rank),
            "NODE_RANK": "0",
            "WORLD_SIZE": str(self.n_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            "OMP_NUM_THREADS": str(self.n_threads),  # else Lightning chooses
            "TORCHELASTIC_USE_AGENT_STORE": "False",  # a torchrun around this is another group
            **_loopback(),
        }
        before, threads = (
            {name: os.environ.get(name) for name in variables},
            torch.get_num_threads(),
        )
        os.environ.update(variables)
        torch.set_num_threads(self.n_threads)
        try:
            yield
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            torch.set_num_threads(threads)
            for name, value in before.items():
                _set_variable(name, value)


def training_device(devices: int, accelerator: str, batch_size: int) -> torch.device:
    """What each of ``devices`` processes trains on.

    Args:
        devices: Processes: GPUs, or shares of the CPU.
        accelerator: ``cpu``, ``gpu``, or ``auto``: the GPU if there is any.
        batch_size: Traces of a step, which are spread over the processes.

    Raises:
        UsageError: If the machine has fewer GPUs, or a process would have nothing to do.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices > batch_size:
        message = (
            f"{devices} devices share the {batch_size} traces of a step, so some would idle\n"
            f"  Use fewer devices, or a larger batch_size"
        )
        raise UsageError(message)
    if accelerator == "cpu" or (accelerator == "auto" and not n_gpus):
        return torch.device("cpu")
    if n_gpus < devices:
        message = (
            f"{devices} GPUs are needed (accelerator {accelerator}), this machine has {n_gpus}\n"
            f"  Use fewer devices, or accelerator cpu"
        )
        raise UsageError(message)
    return torch.device("cuda")


@contextmanager
def joined_by(n_ranks: int, prepare: Prepare, *arguments: Any) -> Iterator[None]:
    """Be rank zero of ``n_ranks`` inside; the others run what ``prepare(*arguments)`` gives.

    They are ready when the body begins, and have ended when it is left, whatever happens in it.

    Args:
        n_ranks: Two or more.
        prepare: A function of a module; it runs in each of the other processes.
        arguments: What it is given. Tensors among them are shared by all that get them.

    Raises:
        ProcessLostError: If one of the others fails or is killed.
    """
    threads = max(1, torch.get_num_threads() // n_ranks)
    place = Place(0, n_ranks, _free_port(), threads)
    others: list[_Other] = []
    try:
        places = (place._replace(rank=rank) for rank in range(1, n_ranks))
        others.extend(_Other.start(each, prepare, arguments) for each in places)
        for other in others:
            other.wait_until_ready()
        with place.taken():
            yield
        for other in others:
            other.process.join(_PATIENCE_S)
    except RuntimeError as error:  # what torch raises when a peer is gone
        lost = _first_lost(others)
        if isinstance(error, ProcessLostError) or lost is None:
            raise
        raise lost.error() from None
    finally:
        for other in others:
            other.process.kill()
            other.process.join()


class _Other(NamedTuple):
    """A started process, seen from rank zero."""

    rank: int
    process: SpawnProcess
    messages: Connection

    @classmethod
    def start(cls, place: Place, prepare: Prepare, arguments: tuple[Any, ...]) -> "_Other":
        spawn = multiprocessing.get_context("spawn")
        mine, theirs = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_run, args=(theirs, place, prepare, arguments), daemon=True)
        process.start()
        theirs.close()
        return cls(place.rank, process, mine)

    def wait_until_ready(self) -> None:
        said = self._next_message()
        if said != _READY:
            raise self.error(said)

    def error(self, said: str | None = None) -> ProcessLostError:
        """Why it ended, in its own words where it could still speak."""
        said = said or self._next_message()
        self.process.join(_PATIENCE_S)
        reason = said or f"it ended with exit code {self.process.exitcode}\n  {_GUARD}"
        return ProcessLostError(f"process {self.rank} of the training was lost: {reason}")

    def _next_message(self) -> str | None:
        """What it says next; ``None`` if it ends without a word."""
        try:
            said: str = self.messages.recv()
        except EOFError:
            return None
        return said


def _first_lost(others: list[_Other]) -> _Other | None:
    """The one that failed; before those that failed since it was gone, one that was killed."""
    ended = wait([other.process.sentinel for other in others], _PATIENCE_S)
    for other in others:
        if other.process.sentinel in ended:
            other.process.join(_PATIENCE_S)  # it lets go of its sentinel just before it is gone
    failed = [other for other in others if other.process.exitcode]
    return min(failed, key=lambda other: other.process.exitcode or 0, default=None)


def _run(messages: Connection, place: Place, prepare: Prepare, arguments: tuple[Any, ...]) -> None:
    """All that a started process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank zero hears it too, and ends the others
    try:
        with place.taken():
            work = prepare(*arguments)
            messages.send(_READY)
            work()
    except Exception as error:  # noqa: BLE001 - rank zero tells the user, in one line
        messages.send(f"{type(error).__name__}: {error}")
        sys.exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _loopback() -> dict[str, str]:
    """Where gloo is to listen: not on the network, unless the user says so."""
    names = [name for _, name in socket.if_nameindex() if name in _LOOPBACK]
    is_chosen = "GLOO_SOCKET_IFNAME" in os.environ or not names
    return {} if is_chosen else {"GLOO_SOCKET_IFNAME": names[0]}


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
