"""Detectors of answers that read what their context changes."""

from collections.abc import Sequence
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


class ContrastScalar(ScalarDetector):
    """One number of the tokens of an answer, from the columns of the family ``contrast``."""

    way_out: ClassVar[str] = WAY_OUT

    def values(self, traces: Sequence[Trace]) -> Float[np.ndarray, "trace"]:
        """Mean over the answer tokens of each trace; NaN where no context was left out."""
        return np.array([self._value(trace) for trace in traces], dtype=np.float64)

    def of_tokens(self, columns: dict[str, Float[np.ndarray, "token"]]) -> Float[np.ndarray, "token"]:
        """The number of each token."""
        raise NotImplementedError

    def _value(self, trace: Trace) -> float:
        try:
            found = family_columns(trace, "contrast")
        except TraceNotFoundError:
            return np.nan
        return float(self.of_tokens(dict(zip(found.names, found.values.T, strict=True))).mean())


class _Gasp(ContrastScalar):
    def of_tokens(self, columns: dict[str, Float[np.ndarray, "token"]]) -> Float[np.ndarray, "token"]:
        """What the context adds to the log-probability (nat)."""
        return columns["drop"]


class _Lumina(ContrastScalar):
    def of_tokens(self, columns: dict[str, Float[np.ndarray, "token"]]) -> Float[np.ndarray, "token"]:
        """How late a token is decided, as a share of the layers, minus the shift of the output."""
        ranks = np.stack([values for name, values in columns.items() if name.startswith("rank")])
        return (ranks > 0).mean(axis=0) - columns["output_shift"]


Gasp: Final = _Gasp.variant("gasp", __name__)
Lumina: Final = _Lumina.variant("lumina", __name__)

TokenContrast: Final = LinearTokenDetector.variant("token-contrast", __name__)
TokenShift: Final = LinearTokenDetector.variant("token-shift", __name__)
TokenResidual: Final = LinearTokenDetector.variant("token-residual", __name__)
TokenCortex: Final = SmoothedDetector.variant("token-cortex", __name__)
