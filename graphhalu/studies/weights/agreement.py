"""Static quantities against what was measured: rank correlations and verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import benjamini_hochberg
from graphhalu.evaluation.bootstrap import OrNan
from graphhalu.evaluation.rank_correlation import rank_correlation

Verdict = Literal["supported", "unsupported", "contradicted", "not tested"]
VERDICTS: Final[tuple[Verdict, ...]] = ("supported", "unsupported", "contradicted", "not tested")
FALSE_DISCOVERIES: Final = 0.05
"""Share of false discoveries that is allowed among the verdicts."""


class Pair(NamedTuple):
    """A static quantity with its run-time counterpart.

    Attributes:
        static: Quantity of the profile.
        measured: Quantity of the traces.
        level: ``head``, ``kv_head`` or ``layer``.
        sign: The direction that the theory gives.
        is_control: Whether it is a published quantity that theory does not back.
    """

    static: str
    measured: str
    level: Literal["head", "kv_head", "layer"]
    sign: Literal[-1, 1]
    is_control: bool = False


PAIRS: Final = (
    Pair("logit_variance", "entropy", "head", -1),
    Pair("entropy_estimate", "entropy", "head", 1),
    Pair("logit_variance", "first_share", "head", 1),
    Pair("logit_variance", "sink_share", "head", 1),
    Pair("qk_stable_rank", "entropy", "head", 1),
    Pair("self_logit", "self_share", "head", 1),
    Pair("v_norm", "value_norm", "kv_head", 1),
    Pair("ov_norm", "head_output", "head", 1),
    Pair("calibrated_variance", "entropy", "head", -1),
    Pair("strength", "entropy", "head", -1, is_control=True),
    Pair("logit_variance", "entropy", "layer", -1),
    Pair("logit_variance", "sink_share", "layer", 1),
    Pair("value_norm", "value_norm", "layer", 1),
    Pair("attention_gain", "attention_output", "layer", 1),
    Pair("mlp_gain", "mlp_output", "layer", 1),
    Pair("gain_ratio", "output_ratio", "layer", 1),
    Pair("dominance", "output_ratio", "layer", 1, is_control=True),
)
"""What is validated against a store."""

UNTESTED: Final = {
    "copying": "a trace store holds no test of copying; see graphhalu heads patterns and retrieval",
    "composition": "a trace store holds no intervention that would test it",
    "tail_alpha": "it is tested through the risk curve only",
}


@dataclass(frozen=True)
class Agreement:
    """One static quantity against one measured one.

    Attributes:
        static: Quantity of the profile, or of the risk curve.
        measured: Quantity of the traces.
        level: ``head``, ``kv_head`` or ``layer``.
        sign: The direction that was expected.
        n: Cells with both values.
        rho: Spearman's correlation; NaN where it could not be tested.
        low: Low end of its 95 % interval over layers.
        high: High end.
        p_value: Two-sided, by permutation.
        q_value: After Benjamini and Hochberg over all that was tested.
        beyond_depth: What is left without a trend over depth: mean correlation within layers, or
            for layers the partial correlation given their place.
        verdict: ``supported`` where q < 0.05 with the expected sign, ``contradicted`` where it
            has the other one, ``unsupported`` else.
        is_control: Whether theory does not back it.
        is_mixed: Whether it reads parts stored in more than one way.
        reason: Why it was not tested.
    """

    static: str
    measured: str
    level: str
    sign: int
    n: int = 0
    rho: OrNan = float("nan")
    low: OrNan = float("nan")
    high: OrNan = float("nan")
    p_value: OrNan = float("nan")
    q_value: OrNan = float("nan")
    beyond_depth: OrNan = float("nan")
    verdict: Verdict = "not tested"
    is_control: bool = False
    is_mixed: bool = False
    reason: str = ""


def agreement(
    pair: Pair,
    static: Float[np.ndarray, "layer *head"],
    measured: Float[np.ndarray, "layer *head"],
    *,
    is_mixed: bool = False,
    **drawing: int,
) -> Agreement:
    """Correlate one pair; the verdict comes with the others, from :func:`with_verdicts`.

    Args:
        pair: What is compared.
        static: From the weights.
        measured: From the traces.
        is_mixed: Whether the static one reads parts stored in more than one way.
        **drawing: Resamples, permutations and seed, as
            :func:`graphhalu.evaluation.rank_correlation.rank_correlation` takes them.
    """
    known = Agreement(
        pair.static, pair.measured, pair.level, pair.sign, is_control=pair.is_control, is_mixed=is_mixed
    )
    first, second = (values.reshape(len(values), -1).astype(np.float64) for values in (static, measured))
    try:
        found = rank_correlation(first, second, **drawing)
    except NotEnoughDataError as error:
        n_there = int((np.isfinite(first) & np.isfinite(second)).sum())
        return replace(known, n=n_there, reason=str(error))
    return replace(
        known,
        n=found.n_cells,
        rho=found.rho,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        beyond_depth=found.beyond_order,
    )


def with_verdicts(rows: Sequence[Agreement]) -> tuple[Agreement, ...]:
    """The same with false discoveries controlled over all of them, and a verdict each."""
    q_values = benjamini_hochberg(np.array([row.p_value for row in rows], dtype=np.float64))
    return tuple(
        replace(row, q_value=q, verdict=_verdict(row, q))
        for row, q in zip(rows, q_values.tolist(), strict=True)
    )


def counts(rows: Sequence[Agreement]) -> Mapping[str, int]:
    """How often each verdict was given."""
    return {name: sum(row.verdict == name for row in rows) for name in VERDICTS}


def _verdict(row: Agreement, q_value: float) -> Verdict:
    if not np.isfinite(row.rho):
        return "not tested"
    if not q_value < FALSE_DISCOVERIES:
        return "unsupported"
    return "supported" if row.rho * row.sign > 0 else "contradicted"
