"""A connection to Ray: one of this machine alone, or a cluster that is there.

Ray has no passwords by default: whoever reaches its ports runs code on every node. A Ray that is
started here listens on loopback only and has no dashboard; for a cluster set
``RAY_AUTH_MODE=token`` on every node.
"""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from graphhalu.core.errors import ClusterError, MissingExtraError, UsageError

LOCAL: Final = "local"
"""Starts a Ray of this machine and ends it with the run."""

AUTO: Final = "auto"
"""The cluster that this machine is a node of."""

_HOST_PORT: Final = re.compile(r"(?:\[([0-9a-fA-F:]+)\]|([\w.-]+)):(\d{1,5})")
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_REACH_S: Final = 10.0


def check_address(address: str) -> tuple[str, int] | None:
    """Host and port of a cluster; ``None`` for ``local`` and ``auto``.

    Raises:
        UsageError: If it is none of these.
    """
    if address in {LOCAL, AUTO}:
        return None
    match = _HOST_PORT.fullmatch(address)
    if match is None or not 0 < int(match[3]) < 2**16:
        message = (
            f"a Ray cluster is given as local, auto or HOST:PORT, got {address!r}\n"
            f"  Write --ray=HOST:PORT, or --ray alone at the end for this machine"
        )
        raise UsageError(message)
    return match[1] or match[2], int(match[3])


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module ``ray``, connected; a connection that is there already is used and kept.

    Args:
        address: ``local``, ``auto`` or ``HOST:PORT``.

    Raises:
        MissingExtraError: If Ray is not installed.
        UsageError: If the address is none.
        ClusterError: If no cluster answers there.
    """
    place = check_address(address)
    is_loopback = address == LOCAL or (place is not None and place[0] in _LOOPBACK)
    ray = _import_ray(is_loopback=is_loopback)
    if ray.is_initialized():
        yield ray
        return
    if place is not None:
        _require_open(*place)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if is_loopback:
        options["_node_ip_address"] = "127.0.0.1"
    if address == LOCAL:
        options["include_dashboard"] = False
    try:
        ray.init(address=address, **options)
    except Exception as error:  # noqa: BLE001 - ray raises bare exceptions here
        reason = " ".join(str(error).split())
        if address == LOCAL:
            message = (
                f"Ray does not start on this machine: {reason}\n"
                f"  A busy machine can be too slow for it: try again, or leave --ray out"
            )
            raise ClusterError(message) from None
        raise _no_cluster(address, reason) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _import_ray(*, is_loopback: bool) -> Any:
    # read when ray is imported; what a user has set stays
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # ray writes every lost node and worker to stdout, where results go; they are told here
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    # of a Ray that is started here: its workers are the run, and not something in the background
    os.environ.setdefault("RAY_worker_niceness", "0")
    if is_loopback:
        # else 127.0.0.1 becomes the machine's outer address, and the connection hangs
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError:
        message = "--ray needs Ray, which is not installed\n  pip install 'graphhalu[ray]'"
        raise MissingExtraError(message) from None
    return ray


def _require_open(host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=_REACH_S).close()
    except OSError as error:
        raise _no_cluster(f"{host}:{port}", error.strerror or str(error)) from None


def _no_cluster(address: str, reason: str) -> ClusterError:
    message = (
        f"no Ray cluster can be used at {address}: {reason}\n"
        f"  Start one:  ray start --head --port=6379  and on every other machine  "
        f"ray start --address=HOST:6379; this machine must be one of them"
    )
    return ClusterError(message)
