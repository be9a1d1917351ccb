"""How much the beams of one question differ: beams are samples that come for free."""

from dataclasses import replace
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int

from graphhalu.features.base import Feature, feature
from graphhalu.features.block import TraceBlock
from graphhalu.features.likelihood import answer_length, logprob_mean, output_entropy_mean
from graphhalu.features.matrices import finite_or_missing, states, trace_place
from graphhalu.features.row_statistics import attention_entropy_mean, lookback_ratio
from graphhalu.features.sinks import sink_mass_k4

EIGEN_RIDGE: Final = 1e-3
"""What is added to the diagonal of the covariance of the beams."""


def beam_groups(block: TraceBlock) -> Int[np.ndarray, "trace"]:
    """A number for each question, the same for all its beams; -1 for an answer that was given."""
    number: dict[str, int] = {}
    groups = [
        number.setdefault(record.question_id, len(number)) if record.is_on_policy else -1
        for record in block.records
    ]
    return np.array(groups, dtype=np.int64)


def beam_spread(
    values: Float[np.ndarray, "trace *axes"], group: Int[np.ndarray, "trace"]
) -> Float[np.ndarray, "trace *axes"]:
    """Population standard deviation over the beams of each trace's question.

    Args:
        values: A feature; a beam whose value is NaN is left out.
        group: Question of each trace; below 0 for what is no beam.

    Returns:
        The same value for all beams of a question, from 0 up; NaN where fewer than two beams
        have a value, and for what is no beam.
    """
    is_beam = group >= 0
    n_groups = int(group.max(initial=-1)) + 1
    is_known = np.isfinite(values) & is_beam.reshape(-1, *(1,) * (values.ndim - 1))
    known = np.where(is_known, values.astype(np.float64), 0.0)
    count, total = (_group_sum(part, group, n_groups) for part in (is_known, known))
    mean = total / np.maximum(count, 1)
    apart = np.where(is_known, known - mean[group], 0.0)
    variance = _group_sum(apart**2, group, n_groups) / np.maximum(count, 1)
    spread = np.where(count > 1, np.sqrt(variance), np.nan)[group]
    return np.where(is_beam.reshape(-1, *(1,) * (values.ndim - 1)), spread, np.nan)


def _group_sum(
    values: np.ndarray, group: Int[np.ndarray, "trace"], n_groups: int
) -> Float[np.ndarray, "group *axes"]:
    # the last place takes what is no beam
    total = np.zeros((n_groups + 1, *values.shape[1:]))
    np.add.at(total, group, values)
    return total


def spread_of(single: Feature) -> Feature:
    """The spread of a trace-level feature over the beams of a question, as a feature.

    All beams of a question must lie in one block.
    """

    def compute(block: TraceBlock, **parameters: Any) -> Float[np.ndarray, "trace *axes"]:
        return beam_spread(single.values(block, **parameters), beam_groups(block))

    return replace(
        single,
        name=f"beam_std_{single.name}",
        summary=f"Standard deviation over the beams of a question: {single.summary}",
        formula=f"std over beams of ({single.formula})",
        source=f"Instability across beams. {single.source} Missing where only one beam is kept, "
        "and for answers that were given; the same for all beams of a question.",
        direction="higher: the beams differ more",
        compute=compute,
        reads_beams=True,
    )


@feature("hidden | hidden_rows", reads_beams=True)
def beam_eigenscore(block: TraceBlock) -> Float[np.ndarray, "trace"]:
    """Mean log eigenvalue of the covariance between the beams' states in a middle layer.

    Args:
        block: Traces that keep hidden states; all beams of a question are in one block.

    Returns:
        The same value for all beams of a question; NaN where there is one beam only, or a state
        is not finite, and for answers that were given.

    Raises:
        TraceNotFoundError: If the traces keep no hidden states.

    Summary:
        EigenScore over the beams of a question

    Formula:
        mean over k of log of eigenvalue k of cov(Z) + 0.001 I; Z = h[L / 2, S - 1] of each beam;
        cov between beams, over units

    Direction:
        higher: the beams mean more different things

    Source:
        INSIDE, arXiv 2402.03744, over beams and not over samples: the state of the last answer
        token, in the kept layer nearest to the middle, natural logarithm, no clipping of features.
        It depends on the number of beams.
    """
    entry, _ = trace_place(block, block.of_record("length") - 1)
    found = states(block, middle_state(block), entry).astype(np.float64)
    group = beam_groups(block)
    values = np.full(len(block), np.nan)
    for question in range(int(group.max(initial=-1)) + 1):
        beams = np.flatnonzero(group == question)
        if len(beams) > 1 and np.isfinite(found[beams]).all():
            values[beams] = eigenscore(found[beams])
    return finite_or_missing(values)


def eigenscore(embedding: Float[np.ndarray, "beam unit"]) -> float:
    """``mean over k of log eigenvalue k of (Z J Z' / (d - 1) + 0.001 I)``; ``J`` centres units."""
    covariance = np.cov(embedding) + EIGEN_RIDGE * np.eye(len(embedding))
    return float(np.linalg.slogdet(covariance).logabsdet / len(embedding))


def middle_state(block: TraceBlock) -> int:
    """Place of the kept hidden state nearest to half of the model's depth; the lower of two."""
    depth = np.array(block.shape.hidden_layers, dtype=np.float64)
    return int(np.abs(depth - block.shape.n_layers / 2).argmin()) if len(depth) else 0


beam_std_logprob_mean: Final = spread_of(logprob_mean)
beam_std_answer_length: Final = spread_of(answer_length)
beam_std_output_entropy_mean: Final = spread_of(output_entropy_mean)
beam_std_sink_mass_k4: Final = spread_of(sink_mass_k4)
beam_std_lookback_ratio: Final = spread_of(lookback_ratio)
beam_std_attention_entropy_mean: Final = spread_of(attention_entropy_mean)
