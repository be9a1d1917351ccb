"""How much the heads of a layer disagree on a share of attention."""

import numpy as np
from jaxtyping import Float

from graphhalu.errors import NotEnoughDataError
from graphhalu.features.sinks import sink_share
from graphhalu.traces.trace import Trace

SHARE_FLOOR = 1e-6
"""Shares are kept this far from 0 and 1 before a logit: half precision gives exact zeros."""


def head_std(share: Float[np.ndarray, "layer head row"]) -> Float[np.ndarray, "layer row"]:
    """Population standard deviation over heads, ``sqrt(mean_h (s_h - m)^2)``.

    Args:
        share: Share of a row's attention that goes to some span, in [0, 1].

    Returns:
        Values in [0, 0.5]; higher means that the heads disagree more.

    Source:
        Inter-head standard deviation of the public study ``llm-attention-head-instability``
        (its share is that of the system prompt). It depends on the mean of the share: see
        :func:`logit_std` and :func:`bounded_std`.
    """
    spread: Float[np.ndarray, "layer row"] = share.std(axis=1)
    return spread


def logit_std(share: Float[np.ndarray, "layer head row"]) -> Float[np.ndarray, "layer row"]:
    """Population standard deviation over heads of ``log(s / (1 - s))``.

    Args:
        share: In [0, 1]; kept 1e-6 away from both ends.

    Returns:
        Values from 0 up; free of the bound that the mean sets on :func:`head_std`.

    Source:
        Not in the study that :func:`head_std` follows.
    """
    inner = np.clip(share.astype(np.float64), SHARE_FLOOR, 1 - SHARE_FLOOR)
    spread: Float[np.ndarray, "layer row"] = np.log(inner / (1 - inner)).std(axis=1)
    return spread


def bounded_std(share: Float[np.ndarray, "layer head row"]) -> Float[np.ndarray, "layer row"]:
    """Standard deviation over heads relative to its largest value: ``std / sqrt(m (1 - m))``.

    Args:
        share: In [0, 1].

    Returns:
        Values in [0, 1]; NaN where the mean ``m`` is 0 or 1 and no head could differ.

    Source:
        Not in the study that :func:`head_std` follows.
    """
    mean = share.mean(axis=1)
    variance_bound = mean * (1 - mean)
    is_defined = variance_bound > 0
    ratio = share.std(axis=1) / np.sqrt(np.where(is_defined, variance_bound, 1.0))
    # rounding can lift a share of only zeros and ones just above 1
    return np.where(is_defined, np.minimum(ratio, 1.0), np.nan)


def scalar_head_std(trace: Trace) -> float:
    """Mean over layers and answer-producing rows of :func:`head_std` of the sink share.

    Args:
        trace: Keeps the stream ``sink_keys``; the sink is its first four tokens.

    Returns:
        A value in [0, 0.5]; higher means that the heads disagree more.

    Raises:
        NotEnoughDataError: If no answer-producing row comes after the sink and sees it.

    Source:
        As :func:`head_std`, with the sink in place of the system prompt, which most prompts
        lack, and without a window of layers or steps. Rows of the sink itself and rows of a
        sliding-window layer that no longer see it are left out: no head could differ there.
    """
    values, is_defined = sink_share(trace)
    spread = head_std(values)[:, trace.answer_rows]
    is_counted = is_defined[:, trace.answer_rows]
    if not is_counted.any():
        message = (
            f"trace {trace.trace_id!r} has no head std: none of the rows that produce its answer "
            f"lies after the first four tokens and sees them ({trace.prompt_length} prompt tokens)"
            f"\n  Use a longer prompt"
        )
        raise NotEnoughDataError(message)
    return float(spread[is_counted].mean())
