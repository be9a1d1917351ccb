"""Detectors of answers that read what their context changes."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Float

from graphhalu.core.errors import TraceNotFoundError
from graphhalu.detectors.scalars import ScalarDetector
from graphhalu.detectors.smoothing import SmoothedDetector
from graphhalu.detectors.token_features import family_columns
from graphhalu.detectors.token_probes import LinearTokenDetector
from graphhalu.traces.trace import Trace

WAY_OUT: Final = "It compares answers with and without their context: extract with --contrast"

Columns = Mapping[str, Float[np.ndarray, "token"]]
"""Columns of the family ``contrast`` by name."""


def likelihood_drop(columns: Columns) -> Float[np.ndarray, "token"]:
    """What the context adds to the log-probability (nat)."""
    return columns["drop"]


def late_and_unmoved(columns: Columns) -> Float[np.ndarray, "token"]:
    """How late a token is decided, as a share of the layers, minus the shift of the output."""
    ranks = np.stack([values for name, values in columns.items() if name.startswith("rank")])
    return (ranks > 0).mean(axis=0) - columns["output_shift"]


class ContrastScalar(ScalarDetector):
    """One number of the tokens of an answer, from the columns of the family ``contrast``."""

    way_out: ClassVar[str] = WAY_OUT
    of_tokens: ClassVar[Callable[[Columns], Float[np.ndarray, "token"]]]
    """The number of each token."""

    def values(self, traces: Sequence[Trace]) -> Float[np.ndarray, "trace"]:
        """Mean over the answer tokens of each trace; NaN where no context was left out."""
        return np.array([self._value(trace) for trace in traces], dtype=np.float64)

    def _value(self, trace: Trace) -> float:
        try:
            found = family_columns(trace, "contrast")
        except TraceNotFoundError:
            return np.nan
        columns = dict(zip(found.names, found.values.T, strict=True))
        return float(type(self).of_tokens(columns).mean())


Gasp: Final = ContrastScalar.variant("gasp", of_tokens=likelihood_drop)
Lumina: Final = ContrastScalar.variant("lumina", of_tokens=late_and_unmoved)

TokenContrast: Final = LinearTokenDetector.variant("token-contrast", __name__)
TokenShift: Final = LinearTokenDetector.variant("token-shift", __name__)
TokenResidual: Final = LinearTokenDetector.variant("token-residual", __name__)
TokenCortex: Final = SmoothedDetector.variant("token-cortex", __name__)
