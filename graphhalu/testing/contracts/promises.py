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
    got: Float[np.ndarray, "item"], expected: Float[np.ndarray, "item"], what: str, rounding: float = 0.0
) -> None:
    """Refuse scores that differ in a single bit, or by more than rounding; both may be NaN."""
    is_same = np.isclose(got, expected, rtol=rounding, atol=rounding, equal_nan=True)
    n_other = int((~is_same).sum())
    require(not n_other, f"{n_other} of {len(expected)} scores differ {what}")


def require_raises(kind: type[Exception], what: str, call: Callable[[], object]) -> None:
    """Refuse a call that raises something else, or nothing."""
    try:
        call()
    except kind:
        return
    except Exception as error:
        raise AssertionError(
            f"{what} must raise {kind.__name__}, got {type(error).__name__}: {error}"
        ) from error
    raise AssertionError(f"{what} must raise {kind.__name__}, and nothing was raised")
