"""One number a trace from attention."""

from collections.abc import Sequence
from typing import ClassVar, Final, final

import numpy as np
from jaxtyping import Float, Int

from graphhalu.detectors.base import DetectorCard
from graphhalu.detectors.columns import columns_of
from graphhalu.detectors.scalar.base import FeatureScalar, ScalarDetector, row_means
from graphhalu.features.spec import FeatureSpec
from graphhalu.traces.trace import Trace

LEARNT: Final = "The sign is learnt on the training side: it differs from model to model."


@final
class SinkMass(FeatureScalar):
    """Mean attention to the first four tokens.

    Summary:
        mean attention of later tokens to the first four, over layers and heads

    Source:
        Four sink tokens: Xiao et al. 2023, arXiv:2309.17453; the scalar of the public study
        sinks-bruh, without the rows of the sink itself.
    """

    spec: ClassVar[FeatureSpec] = FeatureSpec("sink_mass_k4_all")
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "sink-mass", "attention", reads=("sink_keys",), note=LEARNT
    )


@final
class SinkMassK1(FeatureScalar):
    """Mean attention to the first token.

    Summary:
        mean attention of later tokens to the first, over layers and heads

    Source:
        As sink-mass with K = 1.
    """

    spec: ClassVar[FeatureSpec] = FeatureSpec("sink_mass_k1_all")
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "sink-mass-k1", "attention", reads=("sink_keys",), note=LEARNT
    )


@final
class HeadStd(FeatureScalar):
    """How much heads disagree.

    Summary:
        standard deviation of sink attention over heads, mean over answer and layers

    Source:
        The public study llm-attention-head-instability, with the sink in place of the system prompt
        and without its window of layers and steps.
    """

    spec: ClassVar[FeatureSpec] = FeatureSpec("head_std_sink")
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "head-std", "attention", reads=("sink_keys",), note=LEARNT
    )


@final
class HeadStdLogit(FeatureScalar):
    """How much heads disagree, whatever their mean.

    Summary:
        standard deviation over heads of the logit of sink attention

    Source:
        As head-std, free of the bound that the mean sets on it.
    """

    spec: ClassVar[FeatureSpec] = FeatureSpec("head_logit_std_sink")
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "head-std-logit", "attention", reads=("sink_keys",), note=LEARNT
    )


@final
class Focus(ScalarDetector):
    """Attention of the answer to the question and its context.

    Summary:
        mean attention of the answer to question and context, over layers and heads

    Source:
        The focus score of the public study llm-attention-head-instability, there of the system
        prompt.
    """

    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "focus", "attention", reads=("span_mass",), note=LEARNT
    )

    def values(self, traces: Sequence[Trace]) -> Float[np.ndarray, "trace"]:
        """Mean mass of both spans together; a span that a trace lacks adds nothing."""
        columns = columns_of(traces, (FeatureSpec("span_mass"),))
        spans = [
            row_means(columns.values[:, _places(columns.names, span)]) for span in ("question", "context")
        ]
        is_known = np.isfinite(spans).any(axis=0)
        return np.where(is_known, np.nansum(spans, axis=0), np.nan)


@final
class AttentionLogDet(FeatureScalar):
    """Log-determinant of attention.

    Summary:
        mean log self-attention of the answer's rows, over layers and heads

    Source:
        The attention score of LLM-Check (Sriramanan et al. 2024, NeurIPS), which sums heads in one
        layer picked on the test side; here the mean over all layers. The method is unsupervised and
        has a fixed sign.
    """

    spec: ClassVar[FeatureSpec] = FeatureSpec("self_attention_log")
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "attention-logdet", "attention", reads=("self_attention",), note=LEARNT
    )


@final
class Rauq(FeatureScalar):
    """Uncertainty carried along attention to the previous token.

    Summary:
        log-probabilities smoothed along attention to the previous token

    Source:
        RAUQ (ICML 2026), alpha 0.5, layers L/3 to 2L/3, attention A[t, t - 1] as in the paper (the
        released code reads t - 1 to itself). The method is unsupervised and has a fixed sign; here
        the sign is learnt on the training side, as of all scalars.
    """

    spec: ClassVar[FeatureSpec] = FeatureSpec("rauq")
    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__, "rauq", "attention", "likelihood", reads=("attention", "token_logprob")
    )


def _places(names: Sequence[str], span: str) -> Int[np.ndarray, "chosen"]:
    """Columns of one span."""
    return np.flatnonzero(np.array([name.endswith(f".{span}") for name in names], dtype=bool))
