"""What one prompt's attention says, step by step: pure functions.

Step ``t`` is the row that yields token ``t`` of the answer, its end mark included; step 0 is the
last row of the prompt. A layer whose sliding window no longer shows the system prompt has NaN.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.core.axes import Span
from graphhalu.features.instability import (
    MIDDLE_FROM,
    PROMPT_FLOOR,
    TAIL_CUT,
    bounded_std,
    head_std,
    layer_correlation,
    logit_std,
)
from graphhalu.studies.instability.settings import Denominator
from graphhalu.studies.instability.tracker import focus_share

_PROMPT_SPANS: Final = [span for span in Span if span is not Span.ANSWER]


class Sight(NamedTuple):
    """What a row can see in a layer.

    Attributes:
        any_system: Whether it sees a token of the system prompt.
        everything: Whether it sees the whole sequence before it.
    """

    any_system: Bool[np.ndarray, "layer step"]
    everything: Bool[np.ndarray, "layer step"]


class StepMeasures(NamedTuple):
    """Measures of the steps of one prompt.

    Attributes:
        share: Share of each head's attention that goes to the system prompt.
        share_mean: Its mean over heads.
        std: Its population standard deviation over heads.
        logit: That of its log-odds.
        bounded: ``std`` over the largest value that the mean allows.
        agreement: Mean correlation of the heads' shares over the middle layers.
        focus: System over system and user, mean over heads.
        focus_heads: The same of every head in step 0: what Attention Tracker reads.
    """

    share: Float[np.ndarray, "step layer head"]
    share_mean: Float[np.ndarray, "step layer"]
    std: Float[np.ndarray, "step layer"]
    logit: Float[np.ndarray, "step layer"]
    bounded: Float[np.ndarray, "step layer"]
    agreement: Float[np.ndarray, "step"]
    focus: Float[np.ndarray, "step layer"]
    focus_heads: Float[np.ndarray, "layer head"]


def step_measures(
    mass: Float[np.ndarray, "layer head step span"], sight: Sight, denominator: Denominator
) -> StepMeasures:
    """Everything that the attention to the named spans says.

    Args:
        mass: Attention of each step's row summed over each named span.
        sight: What each row can see.
        denominator: What the share is taken of.
    """
    share = system_share(mass, denominator)
    correlation, is_defined = layer_correlation(*_middle(share, sight.everything))
    focus = focus_share(mass[..., Span.SYSTEM], mass[..., Span.QUESTION])
    return StepMeasures(
        share=np.moveaxis(np.where(sight.any_system[:, None], share, np.nan), 2, 0),
        share_mean=_by_step(share.mean(axis=1), sight),
        std=_by_step(head_std(share), sight),
        logit=_by_step(logit_std(share), sight),
        bounded=_by_step(bounded_std(share), sight),
        agreement=np.where(is_defined, correlation, np.nan),
        focus=_by_step(focus.mean(axis=1), sight),
        focus_heads=np.where(sight.any_system[:, :1], focus[:, :, 0], np.nan),
    )


def system_share(
    mass: Float[np.ndarray, "layer head step span"], denominator: Denominator
) -> Float[np.ndarray, "layer head step"]:
    """Share of a row's attention that goes to the system prompt, in [0, 1].

    ``prompt`` divides by the attention to all tokens before the answer, ``everything`` by the
    whole row, a learned sink included.

    Source:
        The public study ``llm-attention-head-instability`` divides by the prompt, floored at 1e-9.
    """
    system = mass[..., Span.SYSTEM].astype(np.float64)
    if denominator == "prompt":
        prompt = mass[..., _PROMPT_SPANS].astype(np.float64).sum(axis=-1)
        system = system / np.maximum(prompt, PROMPT_FLOOR)
    return np.clip(system, 0.0, 1.0)


def sight_of(
    rows: Int[np.ndarray, "step"], system: Int[np.ndarray, "member"], layer_windows: Sequence[int | None]
) -> Sight:
    """What rows see through the sliding window of each layer.

    Args:
        rows: Positions of the rows.
        system: Positions of the system prompt's tokens.
        layer_windows: How many keys a row sees, itself included; ``None`` = all.
    """
    firsts = np.stack([rows * 0 if w is None else rows - w + 1 for w in layer_windows])
    return Sight(firsts <= system.max(), firsts <= 0)


def _by_step(values: Float[np.ndarray, "layer step"], sight: Sight) -> Float[np.ndarray, "step layer"]:
    """Steps first, and NaN in layers that do not show the system prompt."""
    return np.where(sight.any_system, values, np.nan).T


def _middle(
    share: Float[np.ndarray, "layer head step"], sees_all: Bool[np.ndarray, "layer step"]
) -> tuple[Float[np.ndarray, "middle head step"], Bool[np.ndarray, "middle step"]]:
    kept = layer_slice(len(share), MIDDLE_FROM, TAIL_CUT)
    return share[kept], sees_all[kept]


def layer_slice(n_layers: int, mid_high: float, tail_cut: float) -> slice:
    """Layers ``int(L * mid_high) … int(L * (1 - tail_cut)) - 1``, as the study cuts them."""
    return slice(int(n_layers * mid_high), int(n_layers * (1 - tail_cut)))
