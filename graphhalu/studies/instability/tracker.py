"""Attention Tracker, a baseline: focus of some important heads on the instruction.

Heads that attend to the system prompt under benign prompts and not under attacks are important; a
prompt that draws them away has a low focus score. The instruction is the system prompt here, and
the data the user's text.
"""

from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, TypeAdapter, ValidationError

from graphhalu.core.errors import DataFileError, NotEnoughDataError, UsageError
from graphhalu.core.files import read_json

Focus = Float[np.ndarray, "prompt layer head"]
Shares = Float[np.ndarray, "*row"]

FOCUS_FLOOR: Final = 1e-8
_LEAST_PROMPTS: Final = 2

Heads = tuple[tuple[int, int], ...]
"""Important heads, each as layer and head."""

_Place = Annotated[int, Field(strict=True, ge=0)]
_HEADS: Final[TypeAdapter[Heads]] = TypeAdapter(
    Annotated[tuple[tuple[_Place, _Place], ...], Field(min_length=1)]
)


def focus_share(instruction: Shares, data: Shares) -> Shares:
    """Attention to the instruction over that to instruction and data.

    Source:
        Hung et al. 2024, arXiv:2411.00348, ``inst / (inst + data + 1e-8)`` of the last row of
        the prompt. Spans come from character offsets here; theirs are fixed for each model.
    """
    exact = instruction.astype(np.float64)
    return exact / (exact + data + FOCUS_FLOOR)


def important_heads(
    focus: Focus,
    labels: Int[np.ndarray, "prompt"],
    *,
    k_values: tuple[float, ...] = (4.0, 3.0, 2.0, 1.0, 0.0),
) -> tuple[Heads, float | None]:
    """Heads with ``(mean_N - k std_N) - (mean_A + k std_A) > 0``, N benign and A attacks.

    Args:
        focus: Focus of every head in step 0; NaN where a window hides the system prompt.
        labels: 1 = attack.
        k_values: Tried in this order; the first that any head reaches is taken.

    Returns:
        Layer and head of each, and ``k``: ``None`` if no head reaches any, so that all are taken.

    Raises:
        NotEnoughDataError: If a class has fewer than two prompts.

    Source:
        As :func:`focus_share`, with k = 4 and 30 prompts of each class. If no head reaches it
        they take none, and the score does not exist.
    """
    benign, attacks = focus[labels == 0], focus[labels == 1]
    if min(len(benign), len(attacks)) < _LEAST_PROMPTS:
        raise NotEnoughDataError(
            f"important heads need two prompts of each class, got {len(attacks)} attacks and "
            f"{len(benign)} benign prompts"
        )
    gap, spread = benign.mean(0) - attacks.mean(0), benign.std(0) + attacks.std(0)
    for k in (*k_values, None):
        # NaN of a layer that does not see the system prompt is never above 0
        is_chosen = np.isfinite(gap) if k is None else gap - k * spread > 0
        if is_chosen.any() or k is None:
            break
    return tuple((int(layer), int(head)) for layer, head in np.argwhere(is_chosen)), k


def focus_scores(focus: Focus, heads: Heads) -> Float[np.ndarray, "prompt"]:
    """Mean focus of the important heads; low where a prompt draws them away.

    Raises:
        UsageError: If a head lies outside the model.
    """
    n_layers, n_heads = focus.shape[1:]
    outside = [pair for pair in heads if not (pair[0] < n_layers and pair[1] < n_heads)]
    if outside or not heads:
        raise UsageError(
            f"expected heads of a model with {n_layers} layers of {n_heads} heads, got "
            f"{list(outside[0]) if outside else 'none'}\n  Use the list of this model"
        )
    layers, places = np.array(heads).T
    return focus[:, layers, places].mean(axis=1)


def read_important_heads(path: Path) -> Heads:
    """A published list: ``params.important_heads``, or a bare list, of ``[layer, head]``.

    Raises:
        UsageError: If there is no such file.
        DataFileError: If it holds something else.

    Source:
        khhung-906/Attention-Tracker, commit d92bf08, ``configs/model_configs/*.json``.
    """
    try:
        values: Any = read_json(path)
    except FileNotFoundError:
        raise UsageError(f"no list of heads at {path}") from None
    params = values.get("params", values) if isinstance(values, dict) else values
    listed = params.get("important_heads") if isinstance(params, dict) else params
    try:
        return _HEADS.validate_python(listed)
    except ValidationError:
        raise DataFileError(
            f"{path}: expected important_heads as pairs [[layer, head], …], got none"
        ) from None
