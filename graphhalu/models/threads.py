"""How many CPU threads to use when nobody says."""

import os
import time
from pathlib import Path
from typing import Final

_LOADAVG: Final = Path("/proc/loadavg")
_SAMPLES: Final = 8
_PAUSE_S: Final = 0.02


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
