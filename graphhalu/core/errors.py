"""Errors that graphhalu raises on purpose.

The tree, with the exit code that the command line gives::

    GraphhaluError                     1
    ├── UsageError (ValueError)        2   an argument cannot be used
    │   ├── UnknownNameError           2   a name is not known
    │   ├── ConfigError                2   a configuration does not validate
    │   └── StoreMismatchError         2   a store holds another configuration
    ├── DataFileError (ValueError)     1   a file's content cannot be read
    ├── ModelUnavailableError (OSError)1   weights or tokenizer cannot be had
    ├── ModelRefusedError              1   a model fails the self-check, or has no attention
    ├── NonFiniteError                 1   a model or a method gave NaN or infinity
    ├── StoreError                     1
    │   ├── StoreNotFoundError         1
    │   ├── TraceNotFoundError         1
    │   ├── CorruptStoreError          1
    │   └── StoreFullError (OSError)   1
    ├── NotEnoughDataError             1   a split, a class or a table is empty
    ├── DetectorMismatchError          1   a saved detector belongs to another model
    ├── WorkerError                    1   a cluster or a process that shares the work is not there
    └── MissingExtraError (ImportError)1   an optional package is not installed

A message says what was expected, what came, where, and the way out.
"""

from typing import Final


class GraphhaluError(Exception):
    """Base of all errors that a user can meet; its message is one clear text."""

    exit_code: int = 1


class UsageError(GraphhaluError, ValueError):
    """An argument, a path or a name that cannot be used."""

    exit_code = 2


class UnknownNameError(UsageError, LookupError):
    """An unknown name; the message lists the nearest known names."""


class ConfigError(UsageError):
    """A configuration file or value that does not validate."""


class StoreMismatchError(UsageError):
    """An existing store was written with another configuration; the message names the fields."""


class DataFileError(GraphhaluError, ValueError):
    """A file's content cannot be read; the message names the file and the row."""


class ModelUnavailableError(GraphhaluError, OSError):
    """A model's weights, tokenizer or configuration cannot be had."""


class ModelRefusedError(GraphhaluError, RuntimeError):
    """A model without attention, or one that fails the self-check at load."""


class NonFiniteError(GraphhaluError, ArithmeticError):
    """NaN or infinity where a number was expected; the message says in which layer."""


class StoreError(GraphhaluError):
    """Base of the errors of a trace store."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """No trace store was found at this path."""


class TraceNotFoundError(StoreError, LookupError):
    """The store holds no such trace, or not the array asked for."""


class CorruptStoreError(StoreError, ValueError):
    """Stored bytes differ from what was committed, or a part is incomplete."""


class StoreFullError(StoreError, OSError):
    """The disk is full, or the estimate says that the run cannot fit."""


class NotEnoughDataError(GraphhaluError, ValueError):
    """Too few questions or only one class: the number asked for does not exist."""


class DetectorMismatchError(GraphhaluError, ValueError):
    """A saved detector is asked about a model, quantisation or prompt it was not made for."""


class WorkerError(GraphhaluError, RuntimeError):
    """No cluster answers or has room, or a process that shared the work was lost; says which and why."""


class MissingExtraError(GraphhaluError, ImportError):
    """An optional package is needed and not installed; the message has the install command."""


_EXTRAS: Final = {
    "train": ("lightning", "torch_geometric", "torchmetrics", "rustworkx"),
    "report": ("matplotlib", "pandas", "seaborn"),
    "serve": ("fastapi", "prometheus_client", "starlette", "uvicorn", "opentelemetry"),
    "quantize": ("bitsandbytes",),
    "ray": ("ray",),
    "cloud": ("obstore",),
    "hf": ("datasets",),
}
"""Packages of each extra, as they are imported."""


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """What to install for a package that an extra brings; ``None`` for another package.

    Args:
        error: What an import raised.
    """
    package = (error.name or "").partition(".")[0]
    extra = next((name for name, packages in _EXTRAS.items() if package in packages), None)
    if extra is None:
        return None
    return MissingExtraError(
        f"this needs the package {package}, which is not installed\n"
        f"  Install it:  pip install 'graphhalu[{extra}]'"
    )
