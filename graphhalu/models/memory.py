"""How much memory there is for what a model computes."""

import os
from pathlib import Path
from typing import Final

import torch

_SHARE: Final = 0.5
"""Share of the free memory that one batch may take."""

_UNKNOWN: Final = 4 * 2**30
"""Bytes that are assumed where the system does not say."""


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
