"""Conditions of contract tests; a broken one is an :class:`AssertionError` that says which."""

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float


def require(is_kept: bool, broken: str) -> None:
    """Raise what is broken, unless it is kept."""
    if not is_kept:
        raise AssertionError(broken)


def require_known(what: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that stand in no table."""
    unknown = sorted(set(found) - set(known))
    require(not unknown, f"{what} names {unknown}, which there is not: {', '.join(known)}")


def require_same(
    got: Float[np.ndarray, "trace"], expected: Float[np.ndarray, "trace"], what: str
) -> None:
    """Refuse scores that differ in a single bit; both may be NaN."""
    n_other = int((~((got == expected) | (np.isnan(got) & np.isnan(expected)))).sum())
    require(not n_other, f"{n_other} of {len(expected)} scores differ {what}")


def require_raises(kind: type[Exception], what: str, call: Callable[[], object]) -> None:
    """Refuse a call that raises something else, or nothing."""
    try:
        call()
    except kind:
        return
    except Exception as error:
        message = f"{what} must raise {kind.__name__}, got {type(error).__name__}: {error}"
        raise AssertionError(message) from error
    message = f"{what} must raise {kind.__name__}, and nothing was raised"
    raise AssertionError(message)
