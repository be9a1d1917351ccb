"""Attention that goes to the first tokens of a sequence: the attention sink."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from graphhalu.errors import NonFiniteError, NotEnoughDataError, UsageError
from graphhalu.traces.schema import N_SINK_KEYS
from graphhalu.traces.trace import Trace


class SinkShare(NamedTuple):
    """Attention of every row to the first keys, and where that says something.

    Attributes:
        values: In [0, 1].
        is_defined: Whether the row comes after the sink and still sees all of it.
    """

    values: Float[np.ndarray, "layer head row"]
    is_defined: Bool[np.ndarray, "layer row"]


def sink_share(trace: Trace, n_sink: int = N_SINK_KEYS) -> SinkShare:
    """Attention that each row pays to the first ``n_sink`` tokens, per head.

    A row of the sink itself can look at nothing else, and a row further than a sliding window
    away can not look at the sink: both are marked as undefined.

    Args:
        trace: Keeps the stream ``sink_keys``.
        n_sink: Leading tokens that form the sink: 1 to 4 are stored.

    Raises:
        UsageError: If so many keys are not stored.
        NonFiniteError: If a row that counts holds NaN or infinity.
    """
    if not 1 <= n_sink <= N_SINK_KEYS:
        message = f"n_sink must be 1 to {N_SINK_KEYS} (so many keys are stored), got {n_sink}"
        raise UsageError(message)
    keys = trace.stream("sink_keys")[..., :n_sink].astype(np.float64)
    rows = np.arange(trace.record.row_start, trace.length)
    windows = np.array([w or trace.length for w in trace.shape.layer_windows])
    is_defined = (rows >= n_sink) & (rows < windows[:, None])
    mass = keys.sum(-1)
    _require_finite(trace, mass, is_defined)
    # half precision can bring a sum just above 1
    return SinkShare(np.clip(mass, 0.0, 1.0), is_defined)


def _require_finite(
    trace: Trace,
    mass: Float[np.ndarray, "layer head row"],
    is_defined: Bool[np.ndarray, "layer row"],
) -> None:
    places = np.argwhere(~np.isfinite(mass) & is_defined[:, None])
    if len(places):
        place, head, row = places[0].tolist()
        message = (
            f"sink_keys of trace {trace.trace_id!r} hold NaN or infinity in layer "
            f"{trace.shape.attention_layers[place]}, head {head}, row "
            f"{row + trace.record.row_start}\n  Extract the trace again, or leave it out"
        )
        raise NonFiniteError(message)


def sink_mass(trace: Trace, n_sink: int = N_SINK_KEYS) -> Float[np.ndarray, "layer head"]:
    """Mean attention that later tokens pay to the first ``n_sink`` tokens, per head.

    ``mean over rows i >= K of sum over keys j < K of A[i, j]``

    Args:
        trace: Keeps the stream ``sink_keys``.
        n_sink: Leading tokens that form the sink: 1 to 4 are stored.

    Returns:
        Values in [0, 1], higher means a stronger sink; NaN where no stored row counts.

    Raises:
        UsageError: If so many keys are not stored.

    Source:
        Xiao et al. 2023, arXiv:2309.17453; the public study ``sinks-bruh`` (mode ``range``).
        That one counts rows ``i < K`` too, which are 1 by construction. Here they are left
        out, and so are rows of a sliding-window layer that no longer see the whole sink.
    """
    values, is_defined = sink_share(trace, n_sink)
    n_rows = is_defined.sum(-1)[:, None]
    total = np.where(is_defined[:, None], values, 0.0).sum(-1)
    return np.where(n_rows > 0, total / np.maximum(n_rows, 1), np.nan)


def scalar_sink_mass(trace: Trace, n_sink: int = N_SINK_KEYS) -> float:
    """Mean of :func:`sink_mass` over the layers and heads that have one, in [0, 1].

    Raises:
        UsageError: If so many keys are not stored.
        NotEnoughDataError: If no row of any layer comes after the sink and sees it.

    Source:
        As :func:`sink_mass`. A mean over heads hides what single heads show; it is here as
        the baseline to beat.
    """
    mass = sink_mass(trace, n_sink)
    finite = mass[np.isfinite(mass)]
    if not finite.size:
        message = (
            f"trace {trace.trace_id!r} has no sink mass: none of its stored rows lies after the "
            f"first {n_sink} tokens and sees them ({trace.length} tokens, rows from "
            f"{trace.record.row_start})\n  Use a longer prompt, or a smaller n_sink"
        )
        raise NotEnoughDataError(message)
    return float(finite.mean())
