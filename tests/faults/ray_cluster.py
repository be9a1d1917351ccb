"""A Ray cluster of several nodes on this machine's loopback, in a process of its own.

Run as a program, it starts one node and prints the cluster's address; each
line that it reads is a command, answered with a number when it is done: ``add CPUS`` adds a node
(the number is the process that runs it), ``lose`` kills the node that was added last without a
warning. It ends with its input.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any, Final

from graphhalu.core.errors import WorkerError

ENVIRONMENT: Final = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # stays on loopback
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_worker_niceness": "0",  # else workers starve beside other work
    "OMP_NUM_THREADS": "1",
}
_STORE_BYTES: Final = 100 * 2**20
_SETTINGS: Final = {
    # a lost node is seen within some seconds, not half a minute
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 3,
    "agent_register_timeout_ms": 300_000,
    # processes that nobody asked for cost the tests more than the work does
    "prestart_worker_first_driver": False,
    "enable_worker_prestart": False,
}
_PATIENCE_S: Final = 300.0
_ATTEMPTS: Final = 5


@dataclass(frozen=True)
class LoopbackCluster:
    """A running cluster.

    Attributes:
        address: For ``--ray``.
        process: The process that runs it.
    """

    address: str
    process: Any

    def add_node(self, cpus: int = 1) -> int:
        """Add a node to the cluster; gives the process that its workers are children of."""
        return self._say(f"add {cpus}")

    def lose_node(self) -> None:
        """Kill the node that was added last, with all that runs on it."""
        self._say("lose")

    def _say(self, command: str) -> int:
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if not answer.isdecimal():
            message = f"the cluster did not {command}: {answer or 'it has ended'}"
            raise RuntimeError(message)
        return int(answer)


@contextmanager
def loopback_cluster(cpus: int = 1, patience_s: float = _PATIENCE_S) -> Iterator[LoopbackCluster]:
    """A cluster with one node, until the context ends or the patience does.

    Args:
        cpus: CPUs of that node.
        patience_s: After so many seconds the cluster is killed, whatever it is at.

    Raises:
        WorkerError: If Ray does not start, as on a machine that is very busy.
    """
    process = subprocess.Popen(
        [sys.executable, __file__, str(cpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        start_new_session=True,
    )
    last = Timer(patience_s, process.kill)
    last.start()
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            message = f"Ray did not start here in {_ATTEMPTS} attempts"
            raise WorkerError(message)
        yield LoopbackCluster(address, process)
    finally:
        last.cancel()
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()


def workers(node: int | None = None) -> list[int]:
    """Processes of this machine that hold the state of an actor; of one node, or of all."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_actor = b"ray::_Actor" in (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        if is_actor and node in {None, parent}:
            found.append(int(folder.name))
    return sorted(found)


def main() -> None:
    """Run a cluster as long as there are commands."""
    from ray.cluster_utils import Cluster

    head = {"include_dashboard": False, "no_monitor": True, "_system_config": _SETTINGS}
    head |= _node(int(sys.argv[1]))
    with open(os.dup(1), "w", buffering=1, encoding="utf-8") as answers:  # noqa: PTH123 - ray prints to stdout
        os.dup2(2, 1)
        cluster = _started(lambda: Cluster(initialize_head=True, head_node_args=head))
        added: list[Any] = []
        answers.write(f"{cluster.address}\n")
        for line in sys.stdin:
            command, *arguments = line.split()
            if command == "add":
                node = _node(int(arguments[0]))
                added.append(_started(partial(cluster.add_node, **node)))
                number = added[-1].all_processes["raylet"][0].process.pid
            else:
                cluster.remove_node(added.pop(), allow_graceful=False)
                number = 0
            answers.write(f"{number}\n")
        cluster.shutdown()


def _started(start: Callable[[], Any]) -> Any:
    """What is started; on a busy machine Ray's own processes can be too slow for each other."""
    for _ in range(_ATTEMPTS - 1):
        with suppress(Exception):
            return start()
    return start()


def _node(cpus: int) -> dict[str, Any]:
    """Settings of a node; with ports given, it does not wait for what would choose them."""
    agents = (
        "metrics_agent_port",
        "metrics_export_port",
        "dashboard_agent_listen_port",
        "runtime_env_agent_port",
    )
    with ExitStack() as stack:
        free = [stack.enter_context(socket.socket()) for _ in agents]
        for each in free:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in free]
    return {
        "num_cpus": cpus,
        "object_store_memory": _STORE_BYTES,
        "include_log_monitor": False,
        "node_ip_address": "127.0.0.1",
        **dict(zip(agents, ports, strict=True)),
    }


if __name__ == "__main__":
    main()
