"""One number a trace from hidden states."""

from collections.abc import Sequence
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float

from graphhalu.detectors.base import DetectorCard, sibling_traces
from graphhalu.detectors.columns import columns_of
from graphhalu.detectors.scalar.base import FeatureScalar, ScalarDetector
from graphhalu.features.spec import FeatureSpec
from graphhalu.traces.trace import Trace


@final
class HiddenScore(FeatureScalar):
    """How much space the answer's hidden states span.

    Summary:
        mean log singular value of the answer's hidden states, over layers

    Source:
        The hidden score of LLM-Check (Sriramanan et al. 2024, NeurIPS), which picks one layer on
        the test side; here the mean over the kept ones. The method is unsupervised and has a fixed
        sign; here the sign is learnt on the training side.
    """

    spec: ClassVar[FeatureSpec] = FeatureSpec("hidden_score")
    card: ClassVar[DetectorCard] = DetectorCard.of(__doc__, "hidden-score", "hidden", reads=("hidden",))


@final
class EigenScore(ScalarDetector):
    """How much the beams of a question differ.

    Summary:
        log-determinant of the covariance of the beams' hidden states

    Source:
        EigenScore of INSIDE (Chen et al. 2024, arXiv:2402.03744) over the final beams and not over
        samples: last answer token, middle layer, ridge 0.001, no clipping of features. A trace
        without a second beam has no score. The method is unsupervised and has a fixed sign; here
        the sign is learnt on the training side.
    """

    way_out: ClassVar[str] = (
        "It compares the beams of a question: extract with --keep-beams 5 and hidden states"
    )
    card: ClassVar[DetectorCard] = DetectorCard.of(__doc__, "eigenscore", "hidden", reads=("hidden",))

    def values(self, traces: Sequence[Trace]) -> Float[np.ndarray, "trace"]:
        """EigenScore of the beams of each trace's question; they need no label of their own."""
        spec = FeatureSpec("beam_eigenscore")
        found = np.full(len(traces), np.nan)
        for place, (trace, beams) in enumerate(zip(traces, sibling_traces(traces), strict=True)):
            if len(beams) > 1:
                own = [beam.trace_id for beam in beams].index(trace.trace_id)
                values = columns_of(beams, (spec,)).values
                found[place] = values[own, 0] if values.shape[1] else np.nan
        return found
