"""Memory and CPU threads that are free for a model."""

import os
import time
from pathlib import Path
from typing import Final

import torch

_SHARE: Final = 0.5
"""Share of the free memory that one batch may take."""

_UNKNOWN: Final = 4 * 2**30
"""Bytes that are assumed where the system does not say."""

_LOADAVG: Final = Path("/proc/loadavg")
_SAMPLES: Final = 8
_PAUSE_S: Final = 0.02


def free_memory(device: torch.device) -> int:
    """Bytes that a batch may take on a device: half of what is free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _SHARE)
    return int(_free_main_memory() * _SHARE)


def _free_main_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        return int(kibibytes) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return _UNKNOWN


def default_threads() -> int:
    """Cores that are free now, at least one.

    Threads of one process wait for each other: on a core that other work shares they wait most
    of the time, and a small model then runs several times slower on two threads than on one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, round((cores or 1) - busy_cores(_LOADAVG)))


def busy_cores(loadavg: Path) -> float:
    """Processes that want a core now, this one left out; 0 where the system does not tell."""
    try:
        running = [_n_running(loadavg) for _ in range(_SAMPLES)]
    except (OSError, ValueError, IndexError):
        return 0.0
    return sum(running) / len(running) - 1


def _n_running(loadavg: Path) -> int:
    time.sleep(_PAUSE_S)
    return int(loadavg.read_text(encoding="ascii").split()[3].split("/")[0])
