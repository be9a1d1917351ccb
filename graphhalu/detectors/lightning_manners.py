"""What Lightning does to the whole process while it trains, kept to itself."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

_WORKSPACE: Final = "CUBLAS_WORKSPACE_CONFIG"
_QUIET_WARNINGS: Final = (
    # Lightning's own use of torch's tree utilities
    ".*LeafSpec.*is deprecated.*",
)
_QUIET_LOGGERS: Final = ("lightning.pytorch", "lightning.fabric", "lightning_utilities")
"""They announce devices and reasons to stop, which nobody asked for, on every fit."""


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, Lightning says nothing that nobody asked for."""
    loggers = [logging.getLogger(name) for name in _QUIET_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for pattern in _QUIET_WARNINGS:
                warnings.filterwarnings("ignore", message=pattern)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def deterministic_flags_kept() -> Iterator[None]:
    """Lightning's ``deterministic`` sets flags of the whole process; put them back."""
    is_on = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(_WORKSPACE)
    try:
        yield
    finally:
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
        else:
            os.environ[_WORKSPACE] = workspace
        torch.use_deterministic_algorithms(is_on, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
